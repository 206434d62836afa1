"""The decoder that a base is, told from its summary: for backends that build, or limit, something by it."""

from __future__ import annotations

from collections.abc import Collection

from lora_core.errors import Problem
from lora_core.layers import ModelSummary
from lora_core.models.architecture import Architecture, read_architecture
from lora_core.models.supported_families import FAMILIES


def read_decoder(summary: ModelSummary, builder: str) -> tuple[Architecture | None, list[Problem]]:
    """Return the decoder of a base of one of the core's families, or None and what stands against it.

    `builder` says in words what is built for it: "The ONNX model".
    """
    family = next((family for family in FAMILIES if family.name == summary.family), None)
    if family is None:
        what = f"{builder} is made for decoders as Llama is one, not for {summary.family!r}"
        return None, [Problem(what=what, remedy="Use another backend for this model.")]
    return read_architecture(summary.config, family, summary.name)


def read_llama(
    summary: ModelSummary, builder: str, *, carries: Collection[str] = ()
) -> tuple[Architecture | None, list[Problem]]:
    """Return what `read_decoder` does, for a builder that has what Llama has, biases and normalized heads, and what it
    `carries` of `Architecture.beyond_llama`; the problem names what it lacks.
    """
    architecture, problems = read_decoder(summary, builder)
    lacking = () if architecture is None else [words for words in architecture.beyond_llama if words not in carries]
    if not lacking:
        return architecture, problems
    what = f"{builder} has no {', no '.join(lacking)}, which {summary.family} needs"
    return None, [Problem(what=what, remedy="Use another backend for this model.")]


def architecture_of(summary: ModelSummary) -> Architecture | None:
    """Return the decoder that a base of one of the core's families is; None for another, or one that is refused."""
    return read_decoder(summary, "")[0]


def context_limits(summary: ModelSummary) -> tuple[int | None, int | None]:
    """Return the tokens that a base was trained for, and its shortest sliding attention window: beyond that, attention
    to all that is held is not exact. None where there is no such limit.
    """
    architecture = architecture_of(summary)
    return summary.context_len, None if architecture is None else architecture.window
