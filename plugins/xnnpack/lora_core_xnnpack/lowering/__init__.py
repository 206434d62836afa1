"""Lowering: torch modules to ExecuTorch programs for XNNPACK."""
