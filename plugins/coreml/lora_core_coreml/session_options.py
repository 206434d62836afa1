"""What a session of a CoreML bundle can be told."""

from __future__ import annotations

from typing import Literal, get_args

import attrs

from lora_core.errors import UsageError

EvaluatedPrecision = Literal["float16", "float32", "both"]
_CHOICES = get_args(EvaluatedPrecision)


@attrs.frozen(kw_only=True)
class CoremlSessionOptions:
    """How to open a bundle: evaluated at a precision (None: as the program's own asks for), or executed by CoreML."""

    precision: EvaluatedPrecision | None = attrs.field(
        default=None,
        metadata={
            "help": "Evaluate strictly in float16, with float32 intermediates, or at both and report how far they are "
            "apart. [default: both, or float32 for a float32 program]",
            "choices": _CHOICES,
        },
    )
    execute: bool = attrs.field(
        default=False,
        metadata={"help": "Run the program on CoreML itself instead of evaluating it: macOS only, and not proven yet."},
    )

    @precision.validator
    def _known(self, _attribute: object, value: object) -> None:
        if value is not None and value not in _CHOICES:
            raise UsageError(f"There is no precision {value!r}", remedy=f"Choose {', '.join(_CHOICES)}.")

    def __attrs_post_init__(self) -> None:
        """Refuse a precision where CoreML decides on it."""
        if self.execute and self.precision is not None:
            raise UsageError(
                "CoreML computes as it likes: a precision can be chosen for evaluation only",
                remedy="Leave --precision or --execute out.",
            )
