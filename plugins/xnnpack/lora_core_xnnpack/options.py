"""Options of the XNNPACK backend; import-light, the command line reads the fields' metadata."""

from __future__ import annotations

import attrs


def _usual_adapter_data(options: XnnpackOptions) -> str:
    return "embedded" if options.layout == "multimethod" else "external"


@attrs.frozen(kw_only=True)
class XnnpackOptions:
    """What an export to XNNPACK can be told."""

    layout: str = attrs.field(
        default="split",
        validator=attrs.validators.in_(("split", "multimethod")),
        metadata={
            "help": "split: a program for each adapter. multimethod: one program with a method for each, and one KV "
            "cache for all.",
            "choices": ("split", "multimethod"),
        },
    )
    adapter_data: str = attrs.field(
        default=attrs.Factory(_usual_adapter_data, takes_self=True),
        validator=attrs.validators.in_(("external", "embedded")),
        metadata={
            "help": "external: NAME.pte and its weights NAME.ptd. embedded: the weights inside the program. "
            "[default: external; embedded with --layout multimethod, which has no other]",
            "choices": ("external", "embedded"),
        },
    )
    max_context_len: int = attrs.field(
        default=2048,
        validator=attrs.validators.ge(2),
        metadata={"help": "Positions that the KV cache holds: prompt and answer together."},
    )
    max_seq_len: int = attrs.field(
        default=2048,
        validator=attrs.validators.ge(2),
        metadata={"help": "The longest input of one call; a longer prompt is fed in parts."},
    )
    scale_search: str = attrs.field(
        default="affine",
        validator=attrs.validators.in_(("affine", "hqq")),
        metadata={
            "help": "How the scales of quantized weights are found: affine (from minimum and maximum), or hqq "
            "(half-quadratic search, ExecuTorch's default: slow, closer to full precision).",
            "choices": ("affine", "hqq"),
        },
    )
