"""Which reference a bundle is compared with: the model's own independent one, or our eager module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.reference import AdapterReference
from lora_core.errors import UnsupportedError, UsageError
from lora_core.events import Emit, Noted, ignore
from lora_core.models.base import ModelHandle
from lora_core.models.reference_model import ReferenceModel

ReferenceChoice = Literal["auto", "transformers", "eager"]
CHOICES: tuple[ReferenceChoice, ...] = ("auto", "transformers", "eager")


def make_reference(
    choice: ReferenceChoice,
    model: ModelHandle,
    references: Sequence[AdapterReference],
    adapters: Sequence[Adapter],
    *,
    length: int,
    emit: Emit = ignore,
) -> ReferenceModel:
    """Return the reference for texts of up to `length` tokens; `adapters` are what `references` were read as.

    `transformers` is the model's own independent reference (`ModelHandle.reference`), `eager` the module that exports
    start from; `auto` is the first where it can be had, else the second, and `emit` hears why. Raises `UsageError` or
    `UnsupportedError` if the one asked for is impossible.
    """
    if choice not in CHOICES:
        raise UsageError(f"There is no reference {choice!r}.", remedy=f"Choices: {', '.join(CHOICES)}.")
    if choice != "eager":
        try:
            independent = model.reference(references)
        except UnsupportedError as error:
            if choice == "transformers":
                raise
            emit(Noted(message=f"Compared with our own eager module, not with an independent reference: {error}"))
        else:
            if independent is not None:
                return independent
            if choice == "transformers":
                raise UnsupportedError("transformers cannot open this model: it is no checkpoint.", remedy="Use eager.")
    from lora_core.verification.eager_reference import EagerReference

    return EagerReference(model, adapters, length=length)
