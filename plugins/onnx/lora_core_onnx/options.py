"""Options of the ONNX backend; import-light, the command line reads the fields' metadata."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class OnnxOptions:
    """What an export to ONNX can be told."""

    max_context_len: int = attrs.field(
        default=2048,
        validator=attrs.validators.ge(2),
        metadata={"help": "Positions that the model is made for: prompt and answer together."},
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
