"""The base without holding it: lowered as stand-ins, its weights read, quantized and written one after another."""
