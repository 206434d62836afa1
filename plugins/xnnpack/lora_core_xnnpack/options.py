"""Options of the XNNPACK backend; import-light, the command line reads the fields' metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from lora_core.models.context import usual_context
from lora_core.models.executorch.options import CACHE_TYPES, CacheType
from lora_core.preparation.options import CALIBRATION_HELP, ROUNDING_HELP, ROUNDINGS, HowToRound

if TYPE_CHECKING:
    from lora_core.models.executorch.options import ExecutorchOptions
    from lora_core.preparation.rounding import Rounding

DEFAULT_CONTEXT = 2048
SHORTEST_CALL = 5
"""Tokens: torch.export is shown three and needs room above them."""


def _usual_layout(options: XnnpackOptions) -> str:
    return "multimethod" if options.inputs else "split"


def _usual_adapter_data(options: XnnpackOptions) -> str:
    return "embedded" if options.layout == "multimethod" and not options.inputs else "external"


@attrs.frozen(kw_only=True)
class XnnpackOptions:
    """What an export to XNNPACK can be told."""

    lora: Literal["constants", "inputs"] = attrs.field(
        default="constants",
        validator=attrs.validators.in_(("constants", "inputs")),
        metadata={
            "help": "constants: every adapter is a method whose matrices are constants. inputs: A and B are inputs of "
            "one method for all adapters, each of which is a data file, at any strength and blended.",
            "choices": ("constants", "inputs"),
            "omit_if_default": True,  # bundles without it stay what they were
        },
    )
    layout: str = attrs.field(
        default=attrs.Factory(_usual_layout, takes_self=True),
        validator=attrs.validators.in_(("split", "multimethod")),
        metadata={
            "help": "split: a program for each adapter. multimethod: one program with a method for each, and one KV "
            "cache for all. [default: split; multimethod with --lora inputs, which has no other]",
            "choices": ("split", "multimethod"),
        },
    )
    adapter_data: str = attrs.field(
        default=attrs.Factory(_usual_adapter_data, takes_self=True),
        validator=attrs.validators.in_(("external", "embedded")),
        metadata={
            "help": "external: NAME.pte and its weights NAME.ptd. embedded: the weights inside the program. "
            "[default: external; embedded with --layout multimethod and constants, which has no other]",
            "choices": ("external", "embedded"),
        },
    )
    max_context_len: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.ge(2)),
        metadata={
            "help": "Positions that the KV cache holds: prompt and answer together. "
            f"[default: {DEFAULT_CONTEXT}, or the base's if less]"
        },
    )
    max_seq_len: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.ge(2)),
        metadata={
            "help": "The longest input of one call; a longer prompt is fed in parts. [default: --max-context-len]"
        },
    )
    kv_cache: CacheType = attrs.field(
        default="fp32",
        validator=attrs.validators.in_(CACHE_TYPES),
        metadata={
            "help": "The type of keys and values in the cache. fp16: half of the bytes. int8: little more than a "
            "quarter, a scale for each head of a token. Either takes longer in long contexts.",
            "choices": CACHE_TYPES,
            "omit_if_default": True,
        },
    )
    scale_search: str = attrs.field(
        default="fitted",
        validator=attrs.validators.in_(("fitted", "affine", "hqq")),
        metadata={
            "help": "How scales are found: fitted (4-bit ones by half-quadratic search of each group, 8-bit by range), "
            "affine (from minimum and maximum), or hqq (ExecuTorch's default: all by a search of the whole layer).",
            "choices": ("fitted", "affine", "hqq"),
        },
    )
    rounding: HowToRound = attrs.field(
        default="nearest",
        validator=attrs.validators.in_(ROUNDINGS),
        metadata={"help": ROUNDING_HELP, "choices": ROUNDINGS},
    )
    calibration: str | None = attrs.field(default=None, metadata={"help": CALIBRATION_HELP})

    @property
    def inputs(self) -> bool:
        """True if adapters are inputs of the program, not constants."""
        return self.lora == "inputs"

    @property
    def how_to_round(self) -> Rounding:
        """How 4-bit weights are rounded; XNNPACK stores scales of groups in bfloat16."""
        from lora_core.preparation.rounding import Rounding
        from lora_core.quant.fitting import bfloat16

        return Rounding(kind=self.rounding, calibration=self.calibration, narrow=bfloat16)

    def context_len(self, trained: int | None) -> int:
        """Return the positions of the KV cache for a base trained on `trained` tokens (None: unknown)."""
        return usual_context(DEFAULT_CONTEXT, trained) if self.max_context_len is None else self.max_context_len

    def seq_len(self, trained: int | None) -> int:
        """Return the longest input of one call."""
        return self.context_len(trained) if self.max_seq_len is None else self.max_seq_len

    def of_source(self, trained: int | None) -> ExecutorchOptions:
        """Return what is asked of the source of a base trained on `trained` tokens."""
        from lora_core.models.executorch.options import ExecutorchOptions

        return ExecutorchOptions(
            max_context_len=self.context_len(trained), max_seq_len=self.seq_len(trained), cache_type=self.kv_cache
        )
