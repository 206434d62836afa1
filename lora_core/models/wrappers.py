"""Language models inside others: the text part of a model that also sees or hears, by the names that it has alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.models.checkpoint import Checkpoint, open_checkpoint
from lora_core.models.families import ModelFamily

PLACES = {
    "model.language_model.": "model.",
    "model.text_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
"""How transformers has called the language model inside another, longest first, and what it is called alone."""

_OWN = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
# What an outer configuration says of the text as well.
_SHARED = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "_name_or_path", "transformers_version")
_HEAD = "lm_head.weight"

OTHER_PARTS = re.compile(f"^(?!{'|'.join(map(re.escape, (*PLACES, *_OWN)))})")
"""Names of tensors that are of no language model inside another."""


def text_config(config: Mapping[str, Any], families: Sequence[ModelFamily]) -> Mapping[str, Any] | None:
    """Return the configuration of the language model inside the one of `config`; None if `config` is its own."""
    inner = config.get("text_config")
    known = {model_type for family in families for model_type in family.model_types}
    if not isinstance(inner, Mapping) or config.get("model_type") in known:
        return None
    outer = {name: config[name] for name in _SHARED if config.get(name) is not None}
    return {**outer, **{name: value for name, value in inner.items() if name != "architectures"}}


def text_part(checkpoint: Checkpoint) -> Checkpoint:
    """Return `checkpoint` with the tensors of the language model only, under the names that they have alone."""
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if not OTHER_PARTS.search(name)}
    return attrs.evolve(checkpoint, tensors={_alone(name): tensor for name, tensor in own.items()})


def told_tied(config: Mapping[str, Any], family: ModelFamily, directory: Path) -> Mapping[str, Any]:
    """Return `config` with what the checkpoint in `directory` shows if nothing says whether the output head is the
    embedding: outer and inner configurations have other defaults, and leave defaults out.
    """
    if "tie_word_embeddings" in config or family.defaults.get("tie_word_embeddings"):
        return config
    checkpoint, _ = open_checkpoint(directory, re.compile(""))
    return {**config, "tie_word_embeddings": not any(name.endswith(_HEAD) for name in checkpoint.tensors)}


def _alone(name: str) -> str:
    for inside, alone in PLACES.items():
        if name.startswith(inside):
            return alone + name.removeprefix(inside)
    return name
