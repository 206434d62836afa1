"""ExecuTorch's runtime in this process: libraries, options, programs, memory."""
