"""The export options of the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import attrs

from lora_core.errors import UsageError
from lora_core.models.context import usual_context

AUTO = "auto"
DEFAULT_CONTEXT = 512
Mode = Literal["none", "adapter_only", "all"]


def _positive(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ARG001 - attrs' signature
    if value is not None and value <= 0:
        raise UsageError(f"--{attribute.name.replace('_', '-')} must be more than 0, not {value}")


@attrs.frozen(kw_only=True)
class QnnSimOptions:
    """How to build the simulated context; words of the form NAME=VALUE are parsed when the job is checked."""

    quant_updatable: Mode = attrs.field(
        default="adapter_only",
        validator=attrs.validators.in_(get_args(Mode)),
        metadata={
            "help": "What a section may change: LoRA weights, encodings of the LoRA branch too, or all encodings.",
        },
    )
    group: tuple[str, ...] = attrs.field(
        default=(),
        converter=tuple,
        metadata={"help": "Adapters that share encodings: NAME=a,b, or `auto`.", "repeatable": True},
    )
    groups: Path | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(Path),
        metadata={"help": "Groups in the vendor's YAML: use_case with weights_only and encodings_only."},
    )
    max_sqnr_drop: float = attrs.field(
        default=1.0,
        validator=_positive,
        metadata={"help": "How many dB an adapter may lose in a group found by `--group auto`."},
    )
    hot_switch: bool = attrs.field(
        default=False,
        metadata={"help": "All adapters in one rank-concatenated concurrency, chosen by an alpha vector; no sections."},
    )
    calibration: str | None = attrs.field(
        default=None,
        metadata={"help": "Prompts to calibrate on: text, one a line, or .json with lists of token ids."},
    )
    encodings: tuple[str, ...] = attrs.field(
        default=(),
        converter=tuple,
        metadata={
            "help": "AIMET encodings (0.6.1 or 1.0.0) to use instead of calibrated ones: NAME=FILE, "
            "NAME being an adapter or `base`.",
            "repeatable": True,
        },
    )
    weight_bits: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.in_((4, 8))),
        metadata={"help": "Bits of the base's linear weights, instead of the policy's.", "choices": (4, 8)},
    )
    act_bits: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.in_((8, 16))),
        metadata={"help": "Bits of activations, instead of the policy's.", "choices": (8, 16)},
    )
    lora_bits: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.in_((8, 16))),
        metadata={"help": "Bits of LoRA weights, instead of the policy's.", "choices": (8, 16)},
    )
    scale_search: Literal["plain", "importance"] = attrs.field(
        default="plain",
        validator=attrs.validators.in_(("plain", "importance")),
        metadata={
            "help": "How scales of 4-bit weights are found: plain (the least squared error of a channel), or "
            "importance (where every weight counts by the squares of its inputs on the calibration prompts).",
            "choices": ("plain", "importance"),
            "omit_if_default": True,  # contexts without it stay what they were
        },
    )
    input_len: int = attrs.field(
        default=32, validator=_positive, metadata={"help": "Static number of tokens of the prefill graph."}
    )
    context_len: int | None = attrs.field(
        default=None,
        validator=_positive,
        metadata={
            "help": f"Static number of positions in the KV cache. [default: {DEFAULT_CONTEXT}, or the base's if less]"
        },
    )
    rotate: bool | None = attrs.field(
        default=None,
        metadata={
            "help": "Rotate the residual stream so that its outliers fit the grids. "
            "On unless files for the vendor's tools, encodings of an unrotated base or norms after layers are involved."
        },
    )
    split_outliers: bool | None = attrs.field(
        default=None,
        metadata={"help": "Split massive channels of MLPs into smaller copies. On where rotation is by default."},
    )
    emit_qairt: Path | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(Path),
        metadata={"help": "Also write the files that the vendor's tools take into this directory."},
    )

    def positions(self, *limits: int | None) -> int:
        """Return the positions in the KV cache, for a base with `limits` (None limits nothing)."""
        return usual_context(DEFAULT_CONTEXT, *limits) if self.context_len is None else self.context_len

    @property
    def rotates(self) -> bool:
        """Whether the base is rotated."""
        return self.rotate if self.rotate is not None else self._free

    @property
    def splits(self) -> bool:
        """Whether massive channels of the base are split."""
        return self.split_outliers if self.split_outliers is not None else self._free

    @property
    def _free(self) -> bool:
        # Others' files name the tensors of the checkpoint's own base.
        return self.emit_qairt is None and not self.encodings
