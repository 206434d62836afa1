"""Base models: Hugging Face checkpoints, model families, LoRA injection into any module."""
