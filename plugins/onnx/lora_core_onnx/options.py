"""Options of the ONNX backend; import-light, the command line reads the fields' metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from lora_core.models.context import usual_context
from lora_core.preparation.options import CALIBRATION_HELP, ROUNDING_HELP, ROUNDINGS, HowToRound

if TYPE_CHECKING:
    from lora_core.preparation.rounding import Rounding

DEFAULT_CONTEXT = 2048


@attrs.frozen(kw_only=True)
class OnnxOptions:
    """What an export to ONNX can be told."""

    max_context_len: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.ge(2)),
        metadata={
            "help": "Positions that the model is made for: prompt and answer together. "
            f"[default: {DEFAULT_CONTEXT}, or the base's if less]"
        },
    )
    lora: str = attrs.field(
        default="inputs",
        validator=attrs.validators.in_(("inputs", "none")),
        metadata={
            "help": "inputs: A and B of every linear layer are inputs of the model, of any rank, and adapters can be "
            "added at any time. none: a model of the base alone.",
            "choices": ("inputs", "none"),
        },
    )

    # Bundles without these stay what they were.
    rounding: HowToRound = attrs.field(
        default="nearest",
        validator=attrs.validators.in_(ROUNDINGS),
        metadata={"help": ROUNDING_HELP, "choices": ROUNDINGS, "omit_if_default": True},
    )
    calibration: str | None = attrs.field(default=None, metadata={"help": CALIBRATION_HELP, "omit_if_default": True})

    @property
    def how_to_round(self) -> Rounding:
        """How 4-bit weights are rounded, with scales in float32."""
        from lora_core.preparation.rounding import Rounding
        from lora_core.quant.fitting import as_stored

        return Rounding(kind=self.rounding, calibration=self.calibration, narrow=as_stored)

    def context_len(self, *limits: int | None) -> int:
        """Return the positions that the model is made for, for a base with `limits` (None limits nothing)."""
        return usual_context(DEFAULT_CONTEXT, *limits) if self.max_context_len is None else self.max_context_len
