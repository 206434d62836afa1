"""ExecuTorch's files, read and written without ExecuTorch."""
