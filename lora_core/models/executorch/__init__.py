"""ExecuTorch's own Llama definition, built from a checkpoint."""
