"""One base model, any number of LoRA adapters, files that on-device runtimes load."""

from __future__ import annotations

__version__ = "0.1.0"
