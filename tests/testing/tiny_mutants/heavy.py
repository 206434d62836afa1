"""Options whose module imports something heavy."""

import torch  # noqa: F401 - the defect
from lora_core_tiny.options import TinyOptions

__all__ = ["TinyOptions"]
