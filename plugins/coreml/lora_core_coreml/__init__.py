"""CoreML through ExecuTorch: one multi-method program, base weights shared by position."""
