"""An example backend: the base and its adapters as plain safetensors files."""
