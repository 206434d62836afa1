"""The simulated runtime: integer kernels, the executor, and the context with its rules."""
