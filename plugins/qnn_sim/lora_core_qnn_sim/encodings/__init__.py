"""Quantization parameters: the grid of one tensor, sets of them, and AIMET's files."""
