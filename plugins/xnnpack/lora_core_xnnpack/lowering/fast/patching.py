"""Replacing attributes for a while, as the patches here are given it."""

from lora_core.fast_lowering.patching import Patches

__all__ = ["Patches"]
