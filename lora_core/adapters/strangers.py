"""Files that are no LoRA adapter: what they are, said in one line instead of tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import Problem
from lora_core.tensors import StoredTensor

_TRAIN = "Train a LoRA adapter, or merge this one into its base and export that."
_SAVE = "Save it with peft's save_pretrained."


@attrs.frozen(kw_only=True)
class Stranger:
    """A kind of file that is no LoRA adapter: `words` are parts of the names of its tensors."""

    what: str
    remedy: str
    words: tuple[str, ...]


# Other tuners of peft (peft/tuners/*/layer.py), other projects' spellings of LoRA, and what is no adapter at all.
STRANGERS: Sequence[Stranger] = (
    Stranger(
        what="a prompt of trained embeddings (prompt tuning, prefix tuning or P-tuning)",
        remedy=_TRAIN,
        words=("prompt_embeddings", "prompt_encoder"),
    ),
    Stranger(what="a LoHa adapter", remedy=_TRAIN, words=("hada_w1_a", "hada_w2_a")),
    Stranger(what="a LoKr adapter", remedy=_TRAIN, words=("lokr_w1", "lokr_w2")),
    Stranger(what="an (IA)3 adapter", remedy=_TRAIN, words=("ia3_l",)),
    Stranger(what="an OFT or BOFT adapter", remedy=_TRAIN, words=("oft_r", "oft_R", "boft_R", "boft_s")),
    Stranger(what="a VeRA adapter", remedy=_TRAIN, words=("vera_lambda_", "vera_A", "vera_B")),
    Stranger(what="a LoRA adapter as kohya's scripts name it", remedy=_SAVE, words=(".lora_down.", ".lora_up.")),
    Stranger(what="an AdaLoRA adapter", remedy=f"Merge it into its base and export that. {_TRAIN}", words=(".lora_E",)),
)


def is_foreign_type(config: Mapping[str, Any]) -> bool:
    """Say whether a PEFT configuration is of another tuner than LoRA: nothing else of the adapter need be looked at."""
    return bool(config.get("peft_type", "LORA") != "LORA")


def stranger(path: Path, tensors: Sequence[StoredTensor]) -> Problem | None:
    """Return what the file at `path` is, if none of its `tensors` can be of a LoRA adapter that is read."""
    if not tensors:
        return Problem(what="The file holds no tensors", where=str(path), remedy=_SAVE)
    if all(0 in tensor.shape for tensor in tensors):
        return Problem(
            what=f"All {len(tensors)} tensors of this file are empty, as DeepSpeed ZeRO-3 leaves them when an adapter "
            "is saved without gathering its parameters",
            where=str(path),
            remedy="Save it again with stage3_gather_16bit_weights_on_model_save=true, or make weights of the "
            "checkpoint with zero_to_fp32.py.",
        )
    names = [tensor.name for tensor in tensors]
    if any(".lora_A." in name or ".lora_B." in name or "lora_embedding_" in name for name in names):
        return None
    for known in STRANGERS:
        if any(word in name for word in known.words for name in names):
            return Problem(what=f"This is {known.what}", where=str(path), remedy=known.remedy)
    if any(name.endswith((".lora_a", ".lora_b")) for name in names):
        what = "This is an adapter of MLX-LM, beside a configuration that is not MLX-LM's"
        remedy = "MLX-LM writes adapters.safetensors and adapter_config.json into one directory: give that directory."
        return Problem(what=what, where=str(path), remedy=remedy)
    return Problem(
        what=f"There is no LoRA tensor among the {len(names)} of this file{_such_as(names)}",
        where=str(path),
        remedy="Is it a whole model? That is exported with --model." if _whole(names) else _TRAIN,
    )


def _whole(names: Iterable[str]) -> bool:
    return any(name.endswith("embed_tokens.weight") for name in names)


def _such_as(names: Sequence[str]) -> str:
    return f"; the first is {names[0]}"
