"""Options of a CoreML export: what the command line offers and a bundle's manifest records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from lora_core.errors import Problem
from lora_core.models.context import usual_context
from lora_core.preparation.options import CALIBRATION_HELP, ROUNDING_HELP, ROUNDINGS, HowToRound
from lora_core_coreml.program.naming import METHOD_HELP

if TYPE_CHECKING:
    from lora_core.models.executorch.options import ExecutorchOptions
    from lora_core.preparation.rounding import Rounding

DEFAULT_CONTEXT = 1024


@attrs.frozen(kw_only=True)
class CoremlOptions:
    """Options of a CoreML export. Methods: see `naming.METHOD_HELP`."""

    max_context_len: int | None = attrs.field(
        default=None,
        metadata={"help": f"Tokens of prompt and answer together. [default: {DEFAULT_CONTEXT}, or the base's if less]"},
    )
    input_len: int = attrs.field(
        default=32, metadata={"help": "Tokens of one call of forward, or of prefill with --multifunction."}
    )
    dtype: Literal["fp16", "fp32"] = attrs.field(
        default="fp16", metadata={"help": "Precision of weights and computation; the Neural Engine needs fp16."}
    )
    multifunction: bool = attrs.field(
        default=False, metadata={"help": f"Separate methods for decode and prefill that share weights. {METHOD_HELP}"}
    )
    linear_split: bool = attrs.field(
        default=True, metadata={"help": "Split wide linear layers for the Neural Engine; LoRA's own are never split."}
    )
    split_size: int = attrs.field(default=1024, metadata={"help": "Output features of one part of a split layer."})
    max_splits: int = attrs.field(default=8, metadata={"help": "Most parts of a split layer."})
    graph_breaks: bool = attrs.field(
        default=False, metadata={"help": "Cut the program before the first and after the last transformer block."}
    )
    lora: Literal["constants", "inputs"] = attrs.field(
        default="constants",
        validator=attrs.validators.in_(("constants", "inputs")),
        metadata={
            "help": "constants: every adapter is a method whose matrices are constants. inputs: A and B are inputs of "
            "one method for all adapters, each of which is a file of its own, at any strength and blended.",
            "choices": ("constants", "inputs"),
            "omit_if_default": True,  # bundles without it stay what they were
        },
    )
    emit_mlpackage: bool = attrs.field(
        default=False, metadata={"help": "Also write the CoreML packages as .mlpackage, for use in Xcode."}
    )

    rounding: HowToRound = attrs.field(
        default="nearest",
        validator=attrs.validators.in_(ROUNDINGS),
        metadata={"help": ROUNDING_HELP, "choices": ROUNDINGS},
    )
    calibration: str | None = attrs.field(default=None, metadata={"help": CALIBRATION_HELP})

    @property
    def how_to_round(self) -> Rounding:
        """How 4-bit weights are rounded, with scales in the precision of the program."""
        from lora_core.preparation.rounding import Rounding
        from lora_core.quant.fitting import as_stored, float16

        return Rounding(kind=self.rounding, calibration=self.calibration, narrow=float16 if self.float16 else as_stored)

    def problems(self) -> list[Problem]:
        """Return what is wrong with the options."""
        found = []
        for name in ("input_len", "split_size", "max_splits"):
            if getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                found.append(Problem(what=f"{flag} is {getattr(self, name)}", remedy="Give at least 1.", where=flag))
        if self.dtype not in ("fp16", "fp32"):
            remedy = "Choose fp16 or fp32."
            found.append(Problem(what=f"--dtype {self.dtype!r} is unknown", remedy=remedy, where="--dtype"))
        if self.max_context_len is not None and self.max_context_len <= self.input_len:
            what = f"--max-context-len {self.max_context_len} leaves no cache beside --input-len {self.input_len}"
            remedy = "Make the context longer than the input of one call."
            found.append(Problem(what=what, remedy=remedy, where="--max-context-len"))
        return found

    def context_len(self, *limits: int | None) -> int:
        """Return the tokens of prompt and answer together, for a base with `limits` (None limits nothing)."""
        return usual_context(DEFAULT_CONTEXT, *limits) if self.max_context_len is None else self.max_context_len

    def of_source(self, *limits: int | None) -> ExecutorchOptions:
        """Return what is asked of the source of a base with `limits` of its context: logits of all positions unless
        decode and prefill are separate.
        """
        from lora_core.models.executorch.options import ExecutorchOptions

        return ExecutorchOptions(
            max_context_len=self.context_len(*limits),
            max_seq_len=self.input_len,
            attention="static",
            full_logits=not self.multifunction,
            dynamic_seq_len=False,
        )

    @property
    def inputs(self) -> bool:
        """True if adapters are inputs of the program, not constants."""
        return self.lora == "inputs"

    @property
    def float16(self) -> bool:
        """True if weights and computation are float16."""
        return self.dtype == "fp16"
