"""What the files of MLX-LM say, as an adapter of a base.

`NAME.lora_a` is (in_features, rank) and `NAME.lora_b` (rank, out_features), both turned against PEFT's; modules are
called as in the Hugging Face model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.mlx_lm.config import MlxLmConfig
from lora_core.adapters.mlx_lm.names import CONFIG, OLD_WEIGHTS, WEIGHTS
from lora_core.adapters.pairs import FoundPair, implied_by, updates_from
from lora_core.adapters.peft.config import load_config
from lora_core.adapters.views import TurnedTensor
from lora_core.errors import AdapterError, Problem
from lora_core.layers import ModelSummary
from lora_core.tensors import StoredTensor, open_tensors, scan


def read(name: str, weights: Path, config_path: Path, base: ModelSummary) -> Adapter:
    """Return the adapter in these two files, which is for `base`; raises `AdapterError` with every problem found."""
    problems: list[Problem] = []
    config, config_bytes = _config(config_path)
    if not weights.exists() and (weights.parent / OLD_WEIGHTS).exists():
        remedy = f"Convert it to {WEIGHTS}: mlx.core.save_safetensors(..., mlx.core.load(...))."
        raise AdapterError(f"{OLD_WEIGHTS} of an older MLX-LM is not read", where=str(weights.parent), remedy=remedy)
    tensors = open_tensors(weights, error=AdapterError)
    unused = [tensor for tensor in tensors if not tensor.name.endswith((".lora_a", ".lora_b"))]
    if len(unused) == len(tensors):
        what = "There is no LoRA tensor in this file"
        raise AdapterError(what, where=str(weights), remedy="Is it a full fine-tune? That is exported with --model.")
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        problems.append(Problem(what=f"Nothing uses tensor {unused[0].name}{more}", where=str(weights)))
    found = scan(weights, tensors)
    for tensor in found.not_finite:
        remedy = "The training went wrong: train it again."
        problems.append(Problem(what="It holds NaN or infinity", where=f"{weights}: {tensor}", remedy=remedy))
    updates, misfits = updates_from(_pairs(tensors, config.scale), base, weights)
    problems += misfits
    if problems:
        raise AdapterError(problems)
    return Adapter(
        name=name,
        updates=updates,
        digest=hashlib.sha256(found.sha256.encode() + hashlib.sha256(config_bytes).hexdigest().encode()).hexdigest(),
        source=str(weights),
        base_model=config.base_model,
    )


def implied_base(path: Path) -> ModelSummary:
    """Return the layers that the adapter in directory `path` updates."""
    config, _ = _config(path / CONFIG)
    tensors = open_tensors(path / WEIGHTS, error=AdapterError)
    return implied_by(_pairs(tensors, config.scale), config.base_model or path.name)


def _config(path: Path) -> tuple[MlxLmConfig, bytes]:
    raw, data = load_config(path)
    try:
        return MlxLmConfig.from_mlx_dict(raw), data
    except AdapterError as error:
        raise AdapterError(attrs.evolve(each, where=f"{path}: {each.where}") for each in error.problems) from error


def _pairs(tensors: Sequence[StoredTensor], scale: float) -> list[FoundPair]:
    factors: dict[str, dict[str, TurnedTensor]] = {}
    for tensor in tensors:
        module, _, part = tensor.name.rpartition(".")
        if part in ("lora_a", "lora_b"):
            factors.setdefault(module, {})[part] = TurnedTensor(stored=tensor)
    return [
        FoundPair(written=module, a=found.get("lora_a"), b=found.get("lora_b"), scaling=scale)
        for module, found in factors.items()
    ]
