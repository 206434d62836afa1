"""From a loaded base to modules that torch.export and CoreML can take."""
