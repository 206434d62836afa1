"""An example backend that runs what it writes: safetensors files, and a Llama in NumPy."""
