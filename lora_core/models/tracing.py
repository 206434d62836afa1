"""Tracing a base model: what `torch.export` cannot do with it is the model's error, not the plugin's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lora_core.errors import LoraCoreError, ModelError
from lora_core.layers import ModelSummary
from lora_core.models.supported_families import FAMILIES

_REASON = 3


@contextmanager
def tracing(base: ModelSummary) -> Iterator[None]:
    """Run `torch.export.export` of `base` in a block; what it raises becomes a `ModelError` with torch's reason.

    For modules that callers or generic sources bring. What the core builds itself is traced or is the core's defect:
    that passes.
    """
    try:
        yield
    except (LoraCoreError, MemoryError, OSError):
        raise
    except Exception as error:
        if base.family in {family.name for family in FAMILIES}:
            raise
        raise ModelError(
            f"torch.export cannot trace model {base.name!r}: {_reason(error)}",
            remedy="Change the module, its example inputs or its dynamic shapes until torch.export takes them.",
        ) from error


def _reason(error: Exception) -> str:
    """Return the exception's type and the first lines that say something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:_REASON])}" if lines else type(error).__name__
