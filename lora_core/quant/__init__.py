"""Quantization policies: backend-neutral data, decided per layer of the base."""
