"""Adapters as llama.cpp reads them: LoRA in GGUF files."""
