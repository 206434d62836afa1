"""Programs of real decoders, derived from a few layers, against lowerings of every layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from lora_core_xnnpack.inputs.stamping import stamp_with_inputs
from lora_core_xnnpack.multimethod.stamping import stamp_together
from lora_core_xnnpack.split.stamping import stamp_split
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.streaming.base import StreamedBase
from lowered_whole import assert_equal_sets, assert_equal_together, whole_split, whole_together, whole_with_inputs
from safetensors.numpy import load_file, save_file
from workbench import POLICY_REGISTRY, TINY_OPTIONS

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.backend import ExportJob
from lora_core.events import ignore
from lora_core.models.hf import HfModelSource
from lora_core.quant.policies import parse_policy
from lora_core.testing.tiny import TINY_LLAMA, write_tiny_checkpoint

pytestmark = pytest.mark.deep
Ranks = Callable[[int, str], int]


def everywhere(_layer: int, _name: str) -> int:
    return 4


def every_other(layer: int, name: str) -> int:
    return 4 * (layer % 2 == 0 and name in ("q_proj", "down_proj"))


def two_halves(layer: int, name: str) -> int:
    return {"q_proj": 4, "v_proj": 2}.get(name, 0) if layer < 12 else 3 * (name == "up_proj")


def checkpoint(directory: Path, layers: int, family: str) -> Path:
    """Write a random checkpoint; Qwen3 also norms the heads of queries and keys."""
    config: dict[str, Any] = {**TINY_LLAMA, "num_hidden_layers": layers}
    write_tiny_checkpoint(directory, config=config)
    if family == "qwen3":
        weights = directory / "model.safetensors"
        norm = load_file(weights)["model.norm.weight"][: config["hidden_size"] // config["num_attention_heads"]]
        norms = {
            f"model.layers.{layer}.self_attn.{name}_norm.weight": norm.copy()
            for layer in range(layers)
            for name in "qk"
        }
        save_file(load_file(weights) | norms, weights)
        config |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": norm.shape[0]}
        (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


def job(model: Path, ranks: Ranks, policy: str, embedding: str | None) -> ExportJob:
    """Return a job with a slot of `ranks(layer, name)` (0: none) on each linear layer of the blocks."""
    handle = HfModelSource().open(str(model))
    slots = []
    for layer in handle.summary.layers:
        parts = layer.name.split(".")
        rank = ranks(int(parts[2]), parts[-1]) if "layers" in parts else 0
        if rank:
            slots.append(
                Slot(module=layer.name, in_features=layer.in_features, out_features=layer.out_features, rank=rank)
            )
    return ExportJob(
        model=handle,
        adapters=(),
        plans=(SlotPlan(slots=tuple(slots)),),
        policy=parse_policy(policy, POLICY_REGISTRY, embedding=embedding),
        options=TINY_OPTIONS,
        cache=None,
    )


@pytest.mark.parametrize(
    ("layers", "family", "ranks", "policy", "embedding"),
    [
        (14, "llama", everywhere, "fp32", None),
        (14, "llama", everywhere, "fp16", None),
        (14, "llama", everywhere, "c8w", None),
        (14, "llama", everywhere, "8da4w", "8,0"),
        (14, "llama", everywhere, "8da8w", "4,32"),
        (14, "qwen3", everywhere, "fp32", None),
        (20, "llama", every_other, "8da4w", None),
        (24, "llama", two_halves, "fp32", None),
    ],
)
def test_split_programs_of_a_decoder_equal_a_full_lowering(
    tmp_path: Path, layers: int, family: str, ranks: Ranks, policy: str, embedding: str | None
) -> None:
    chosen = job(checkpoint(tmp_path / "model", layers, family), ranks, policy, embedding)
    base = StreamedBase.of(chosen)
    assert base is not None
    derived = stamp_split(LayeredBase.of(base), chosen.plans, ignore)
    assert_equal_sets(derived, whole_split(base, chosen.plans, tmp_path))


@pytest.mark.parametrize(("policy", "embedding"), [("fp32", None), ("8da4w", "8,0")])
@pytest.mark.parametrize(
    ("stamped", "whole"), [(stamp_together, whole_together), (stamp_with_inputs, whole_with_inputs)]
)
def test_a_decoders_program_of_several_methods_equals_a_full_lowering(
    tmp_path: Path, stamped: Any, whole: Any, policy: str, embedding: str | None
) -> None:
    chosen = job(checkpoint(tmp_path / "model", 14, "llama"), everywhere, policy, embedding)
    few = SlotPlan(slots=tuple(attrs.evolve(slot, rank=2) for slot in chosen.plans[0].slots if "mlp" in slot.module))
    plans = (*chosen.plans, few)
    base = StreamedBase.of(chosen)
    assert base is not None
    derived = stamped(LayeredBase.of(base), plans, ignore)
    assert_equal_together(derived, whole(base, plans, tmp_path))
