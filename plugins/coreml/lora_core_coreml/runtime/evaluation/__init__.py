"""Reference evaluation of stored CoreML functions by coremltools' own operator semantics."""
