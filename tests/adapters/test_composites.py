"""Composites: the sum of their parts, as peft concatenates them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.composites import compose
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.kinds import extent_of
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.errors import AdapterError
from tests.adapters.peft_cases import summary_of, tiny_model
from tests.adapters.toy import base_of, deltas, made
from tests.numeric import apart, tolerance

pytestmark = pytest.mark.processors

QV: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
MIXES: dict[str, tuple[list[dict[str, Any]], list[float]]] = {
    "two of one shape": ([QV, QV], [0.7, 0.3]),
    "negative strength": ([QV, QV], [1.0, -0.5]),
    "three": ([QV, QV, QV], [0.5, 0.25, 0.25]),
    "other ranks": ([QV, QV | {"r": 8, "lora_alpha": 4}], [0.7, 0.3]),
    "other targets": ([QV, QV | {"target_modules": ["up_proj", "q_proj"]}], [0.7, 0.3]),
    "patterns": ([QV, QV | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}], [0.6, 0.4]),
    "rslora second": ([QV, QV | {"use_rslora": True}], [0.6, 0.4]),
}


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_composite_equals_peft_concatenation(mix: str, tmp_path: Path) -> None:
    configs, strengths = MIXES[mix]
    oracle, adapters = _mixed_by_peft(configs, strengths, tmp_path)

    composed = deltas(compose("mix", list(zip(adapters, strengths, strict=True))))

    assert composed.keys() == oracle.keys()
    for module, delta in composed.items():
        # PEFT adds at most 12 products in float32; its factors and ours are rounded once more.
        assert apart(delta, oracle[module]) <= tolerance(12 + 2)


def _mixed_by_peft(
    configs: list[dict[str, Any]], strengths: list[float], directory: Path
) -> tuple[dict[str, Any], list[Adapter]]:
    model: Any = tiny_model("llama")
    base = summary_of(model, "llama")
    torch.manual_seed(1)
    names = [f"part{index}" for index in range(len(configs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that several adapters share one model
        for name, config in zip(names, configs, strict=True):
            lora = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config)
            model = peft.get_peft_model(model, lora, name) if name == "part0" else model
            if name != "part0":
                model.add_adapter(name, lora)
        model.save_pretrained(directory, save_embedding_layers=False)
        model.add_weighted_adapter(names, strengths, "mix", combination_type="cat")
    oracle = {
        name: module.get_delta_weight("mix").detach().double().numpy()
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer) and "mix" in module.lora_A
    }
    return oracle, [PeftFormat().read(name, directory / name, base) for name in names]


def test_composite_is_the_weighted_sum_of_its_parts_with_rslora_first(tmp_path: Path) -> None:
    base = base_of()
    first = made(tmp_path / "first", base, "q_proj", "v_proj", rank=4, rslora=True)
    second = made(tmp_path / "second", base, "q_proj", "up_proj", rank=3, alpha=5, seed=1)

    composed = deltas(compose("mix", [(first, 0.7), (second, -0.2)]))

    one, two = deltas(first), deltas(second)
    assert composed.keys() == one.keys() | two.keys()
    for module, delta in composed.items():
        # The strength is folded into B: each of at most 4 + 3 products is rounded once.
        expected = 0.7 * one.get(module, 0.0) - 0.2 * two.get(module, 0.0)
        assert apart(delta, expected) <= tolerance(7)


def test_composite_of_one_part_has_the_bytes_of_that_adapter_at_that_strength(tmp_path: Path) -> None:
    base = base_of()
    adapter = made(tmp_path / "one", base, "q_proj", "v_proj", alpha=3)
    alone, composed = adapter.scaled(0.3), compose("mix", [(adapter, 0.3)])
    plan = SlotPlan.from_adapters([alone], base.layers, max_rank=5)

    for (slot, own), (_, mixed) in zip(plan.bind(alone), plan.bind(composed), strict=True):
        one, other = slot.fold(own), slot.fold(mixed)
        assert {part: one[part].tobytes() for part in one} == {part: other[part].tobytes() for part in other}


def test_composite_is_lazy_ordinary_adapter(tmp_path: Path) -> None:
    base = base_of()
    parts = [made(tmp_path / name, base, "q_proj", rank=rank) for name, rank in (("one", 2), ("two", 3))]

    composed = compose("mix", [(part, 0.5) for part in parts])
    (tmp_path / "one" / "adapter_model.safetensors").unlink()

    assert {extent_of(update).rank for update in composed.updates} == {5}
    assert {update.tensors["b"].shape for update in composed.updates} == {(8, 5)}
    assert composed.base_model == "org/toy"
    with pytest.raises(Exception, match="Cannot read tensor"):
        composed.updates[0].tensors["a"].read()


def test_digest_tells_parts_order_and_strengths_apart(tmp_path: Path) -> None:
    base = base_of()
    one, two = (made(tmp_path / name, base, "q_proj", seed=seed) for seed, name in enumerate(("one", "two")))
    mixes = [[(one, 0.5), (two, 0.5)], [(two, 0.5), (one, 0.5)], [(one, 0.5), (two, 0.6)], [(one, 0.5)], [(one, 1.0)]]

    digests = {compose("mix", mix).digest for mix in mixes}

    assert len(digests) == len(mixes)
    assert compose("mix", mixes[0]).digest == compose("other", mixes[0]).digest


def test_parts_of_different_bases_are_refused(tmp_path: Path) -> None:
    one = made(tmp_path / "one", base_of(), "q_proj")
    two = made(tmp_path / "two", base_of({"self_attn.q_proj": (8, 6)}), "q_proj")

    with pytest.raises(AdapterError, match="differ in the size of") as caught:
        compose("mix", [(one, 0.5), (two, 0.5)])

    assert len(caught.value.problems) == 2


def test_composite_without_parts_is_refused() -> None:
    with pytest.raises(AdapterError, match="no parts"):
        compose("mix", [])
