"""The base without holding it: its structure to lower, its weights read, quantized and written one after another."""
