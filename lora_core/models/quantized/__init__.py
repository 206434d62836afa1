"""Checkpoints that are stored quantized, read as the float32 weights that they stand for."""
