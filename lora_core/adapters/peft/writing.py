"""Adapters written as PEFT saves them, whatever they were read from."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_core.adapters.adapter import LOW_RANK, Adapter
from lora_core.adapters.peft.fitted_mark import FITTED_FOR, marked
from lora_core.adapters.peft.spelling import PEFT_PREFIX
from lora_core.adapters.slots.kinds import extent_of, kind_of
from lora_core.errors import Problem, UnsupportedError

if TYPE_CHECKING:
    import numpy.typing as npt

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def write_peft(adapter: Adapter, directory: Path) -> None:
    """Write `adapter` into the existing `directory` as PEFT would save it: plain LoRA with every module by its name.

    A and B are stored in float16 where they were read from it, else in float32 (numpy has no bfloat16). Scalings become
    an alpha for each module, so that `alpha / r` is the scaling again, to the last bit where a double can say so.
    Raises `UnsupportedError` for updates that are not LoRA.
    """
    refuse_unwritable(adapter)
    (directory / CONFIG).write_text(json.dumps(peft_config(adapter), indent=2, sort_keys=True) + "\n", "utf-8")
    from safetensors.numpy import save  # `save_file` lets nobody but the owner read what it writes

    data = save(_tensors(adapter), metadata={"format": "pt"})
    if adapter.fitted_for is not None:
        data = marked(data, {"format": "pt", FITTED_FOR: adapter.fitted_for})
    (directory / WEIGHTS).write_bytes(data)


def refuse_unwritable(adapter: Adapter) -> None:
    """Raise `UnsupportedError` for an adapter with updates that are not LoRA, which `write_peft` does not write."""
    others = {update.kind for update in adapter.updates} - {LOW_RANK, "lookup"}
    if others:
        what = f"Adapter {adapter.name!r} has {', '.join(sorted({kind_of(kind).feature for kind in others}))}"
        raise UnsupportedError(Problem(what=what, where=adapter.source, remedy="Only LoRA is written as PEFT."))


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """Return `adapter_config.json` for `adapter`: the commonest rank and alpha, and patterns for all others."""
    ranks = {update.module: extent_of(update).rank for update in adapter.updates}
    alphas = {update.module: _alpha(update.scaling, ranks[update.module]) for update in adapter.updates}
    (rank, _), (alpha, _) = Counter(ranks.values()).most_common(1)[0], Counter(alphas.values()).most_common(1)[0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ranks),
        "rank_pattern": {_exactly(module): each for module, each in ranks.items() if each != rank},
        "alpha_pattern": {_exactly(module): each for module, each in alphas.items() if each != alpha},
    }


def _tensors(adapter: Adapter) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    for update in adapter.updates:
        embedding = update.kind == "lookup"
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        for part, key in zip(("table" if embedding else "a", "b"), names, strict=True):
            tensor = update.tensors[part]
            kept = np.float16 if tensor.dtype == "F16" else np.float32
            values = tensor.read().T if part == "table" else tensor.read()
            found[f"{PEFT_PREFIX}{update.module}.{key}"] = np.ascontiguousarray(values, dtype=kept)
    return found


def _alpha(scaling: float, rank: int) -> float:
    """Return the alpha whose quotient by `rank` is `scaling`, or is nearest to it; a whole number as one."""
    near = scaling * rank
    candidates = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    alpha = min(candidates, key=lambda each: abs(each / rank - scaling))
    return int(alpha) if alpha.is_integer() else alpha


def _exactly(module: str) -> str:
    """Return a pattern that matches `module` alone, as PEFT matches patterns against the ends of names."""
    return "^" + module.replace(".", r"\.")
