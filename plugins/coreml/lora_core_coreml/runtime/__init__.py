"""A stored program run: static attention, evaluation, and CoreML itself."""
