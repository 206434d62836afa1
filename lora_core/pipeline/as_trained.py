"""Fitted adapters as they were trained: what they make up for is no part of what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.peft.fitted_mark import ORIGINAL
from lora_core.adapters.reference import AdapterReference


def as_trained(references: Sequence[AdapterReference], read: Sequence[Adapter]) -> tuple[AdapterReference, ...]:
    """Return `references`, which were read as `read`, those to fitted adapters to what these were made of.

    One whose directory `original` is gone stays as it is.
    """
    fitted = {adapter.name for adapter in read if adapter.fitted_for is not None}
    return tuple(_original(each) if each.name in fitted else each for each in references)


def _original(reference: AdapterReference) -> AdapterReference:
    if reference.directory is None or not (reference.directory / ORIGINAL).is_dir():
        return reference
    return attrs.evolve(reference, directory=reference.directory / ORIGINAL)
