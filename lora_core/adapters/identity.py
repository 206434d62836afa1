"""Whether an adapter says it belongs to another base, or to the rounding of another."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lora_core.adapters.adapter import Adapter
from lora_core.errors import AdapterError, Problem
from lora_core.layers import ModelSummary

# What copies of one model are called by: how they are quantized, for which library, in which type.
_COPY = re.compile(
    r"(?:[-_.](?:unsloth|bnb|\d+-?bits?|u?int[48]|(?:nv|mx)?fp[48]|nf4|fp16|bf16|w[48]a(?:8|16)(?:g\d+)?|\d+g|actorder"
    r"|awq|gptq|gguf|hqq|exl2|marlin|auto-?round|mlx|hf|dynamic|kv|quantized|sharded))+$"
)
# The hub renamed Meta-Llama-3.1 to Llama-3.1 and answers to both.
_RENAMED = re.compile(r"^meta-(?=llama)")


def other_base(adapter: Adapter, base: ModelSummary) -> str | None:
    """Return a warning if `base_model_name_or_path` of `adapter` contradicts the base's identities, else None.

    Names are compared without case; a path or hub id also by its last part, because the same model is called by its
    hub id in one place and by its directory in another, and that part also without what a quantized or converted copy
    adds to it, or the hub has renamed: adapters are trained on `unsloth/NAME-bnb-4bit` and belong to NAME. The name is
    a hint that anyone can edit, so this is no error: what fits by shape is used.
    """
    if not adapter.base_model or not base.identities:
        return None
    known = {part for identity in base.identities for part in _names(identity)}
    if known & _names(adapter.base_model):
        return None
    return (
        f"Adapter {adapter.name!r} was trained for {adapter.base_model!r}, but this base is "
        f"{' or '.join(repr(identity) for identity in base.identities)}. If that is another model, the adapter's "
        f"answers will be wrong. ({adapter.source}: base_model_name_or_path)"
    )


def refuse_fitted_elsewhere(adapters: Iterable[Adapter], foundation: str) -> None:
    """Raise `AdapterError` for adapters that make up for the rounding of another foundation than this fingerprint."""
    problems = [
        Problem(
            what=f"Adapter {adapter.name!r} makes up for the rounding of foundation {adapter.fitted_for}, and this "
            f"base is {foundation}: it would add errors instead",
            where=adapter.source,
            remedy="Give the adapter that it was made of (its directory `original`), or fit that to a bundle of this "
            "base with lora-core fit-adapter.",
        )
        for adapter in adapters
        if adapter.fitted_for not in (None, foundation)
    ]
    if problems:
        raise AdapterError(problems)


def _names(identity: str) -> set[str]:
    whole = identity.replace("\\", "/").rstrip("/").lower()
    last = whole.rpartition("/")[2]
    plain = _RENAMED.sub("", _COPY.sub("", last) or last)
    return {whole, last, plain}
