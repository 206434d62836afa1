# ruff: noqa: TID253  this module is imported only when a model is opened, with transformers already loaded
"""transformers' own modules: their structure without weights, and with those of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from lora_core.errors import ModelError
from lora_core.models.transformers_reference import silent
from lora_core_transformers.checkpoint import TransformersCheckpoint

HEADS = ("classifier", "score")
"""What peft 0.21.2 calls heads of classifiers (`PeftModelForSequenceClassification`)."""
_SHOWN = 5


def structure(checkpoint: TransformersCheckpoint) -> torch.nn.Module:
    """Return the module that the configuration describes, its tensors on torch's meta device; raises `ModelError`."""
    try:
        with torch.device("meta"), silent():
            return _linear(_opener(checkpoint).from_config(checkpoint.config, dtype=torch.float32)).eval()
    except Exception as error:
        raise ModelError(
            f"transformers cannot build {checkpoint.model_type!r}: {error}", where=str(checkpoint.directory)
        ) from error


def load(checkpoint: TransformersCheckpoint) -> torch.nn.Module:
    """Return the module with its weights, float32; raises `ModelError` for weights that are not all of it.

    The head of a classifier may be missing: then its weights are zero, and adapters bring their own.
    """
    try:
        with silent():
            model, told = _opener(checkpoint).from_pretrained(
                checkpoint.directory,
                config=checkpoint.config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise ModelError(f"transformers cannot open the model: {error}", where=str(checkpoint.directory)) from error
    missing = set(told["missing_keys"])
    if checkpoint.role == "classifier":
        missing -= _zero_head(model, missing)
    _check(checkpoint, missing, () if checkpoint.role == "classifier" else told["unexpected_keys"])
    return _linear(model).eval()


def head_of(model: Any) -> str | None:
    """Return the path of the output head of `model`, as peft leaves it out of `all-linear`; None if there is none."""
    output = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is output] if output is not None else []
    return next((name for name in (*names, *HEADS) if isinstance(_at(model, name), torch.nn.Linear)), None)


def _at(model: Any, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name, None)


def _opener(checkpoint: TransformersCheckpoint) -> Any:
    if checkpoint.role == "classifier":
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForCausalLM


def _zero_head(model: Any, missing: Collection[str]) -> set[str]:
    """Make the parameters of the head zero if they are `missing`; return the names of those."""
    found = {name: each for name, each in model.named_parameters() if name in missing and name.split(".")[0] in HEADS}
    with torch.no_grad():
        for parameter in found.values():
            parameter.zero_()
    return set(found)


def _check(checkpoint: TransformersCheckpoint, missing: Collection[str], unused: Collection[str]) -> None:
    """Raise `ModelError` for weights that would be random, and for stored ones that nothing reads."""
    for verb, names in (("lacks", missing), ("holds what nothing reads:", unused)):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN))
            raise ModelError(
                f"The checkpoint {verb} {shown}.",
                where=str(checkpoint.directory),
                remedy="Check that config.json belongs to these weights.",
            )


def _linear(model: Any) -> Any:
    """Put linear layers in place of GPT-2's `Conv1D`, which is one with its weight transposed."""
    for path, old in [(path, each) for path, each in model.named_modules() if isinstance(each, Conv1D)]:
        owner, _, name = path.rpartition(".")
        with torch.device("meta"):
            new = torch.nn.Linear(old.weight.shape[0], old.weight.shape[1])
        new.weight = torch.nn.Parameter(old.weight.detach().t().contiguous(), requires_grad=False)
        new.bias = torch.nn.Parameter(old.bias.detach(), requires_grad=False)
        setattr(model.get_submodule(owner), name, new)
    return model
