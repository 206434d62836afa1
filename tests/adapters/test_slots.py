"""Slot plans: what they hold, what they cost, what does not fit, and the bytes of a slot."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.choice import plan_for
from lora_core.adapters.slots.misfits import misfits
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.adapters.targets import parse_targets
from lora_core.errors import AdapterError, UsageError
from lora_core.layers import ModelSummary
from tests.adapters.toy import base_of, made, tensors_of, write

BASE = base_of()
LINEAR = [layer.name for layer in BASE.layers if layer.kind == "linear"]


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[Adapter, Adapter, Adapter]:
    return (
        made(tmp_path / "small", BASE, "q_proj", "v_proj", rank=2),
        made(tmp_path / "large", BASE, "q_proj", rank=5, seed=1),
        made(tmp_path / "other", BASE, "layers.1.mlp.up_proj", rank=3, seed=2),
    )


def ranks(plan: SlotPlan) -> dict[str, int]:
    return {slot.module.removeprefix("model.layers."): slot.rank for slot in plan.slots}


def test_plan_is_the_union_of_targets_at_the_largest_rank_in_base_order(adapters: Any) -> None:
    plan = SlotPlan.from_adapters(adapters, BASE.layers)

    assert list(ranks(plan).items()) == [
        ("0.self_attn.q_proj", 5),
        ("0.self_attn.v_proj", 2),
        ("1.self_attn.q_proj", 5),
        ("1.self_attn.v_proj", 2),
        ("1.mlp.up_proj", 3),
    ]


def test_plan_does_not_depend_on_the_order_of_adapters(adapters: Any) -> None:
    assert len({SlotPlan.from_adapters(order, BASE.layers) for order in permutations(adapters)}) == 1
    assert len({SlotPlan.per_shape(order, BASE.layers) for order in permutations(adapters)}) == 1


def test_slots_have_the_sizes_of_their_layers(adapters: Any) -> None:
    for slot in SlotPlan.from_adapters(adapters, BASE.layers).slots:
        layer = BASE.layer(slot.module)
        assert (slot.in_features, slot.out_features) == (layer.in_features, layer.out_features)


def test_max_rank_raises_every_slot(adapters: Any) -> None:
    assert set(ranks(SlotPlan.from_adapters(adapters, BASE.layers, max_rank=6)).values()) == {6}


def test_targets_reserve_slots_at_the_largest_rank_of_any_adapter(adapters: Any) -> None:
    plan = SlotPlan.from_adapters(adapters[:1], BASE.layers, targets=["up_proj"])

    assert ranks(plan)["0.mlp.up_proj"] == 2
    assert len(plan.slots) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q_proj", ["0.self_attn.q_proj", "1.self_attn.q_proj"]),
        ("layers.1.mlp.up_proj, lm_head", ["1.mlp.up_proj", "lm_head"]),
        (r".*layers\.0\..*(q|up)_proj", ["0.self_attn.q_proj", "0.mlp.up_proj"]),
        ("all-linear", [name.removeprefix("model.layers.") for name in LINEAR if name != "lm_head"]),
    ],
)
def test_room_can_be_reserved_without_any_adapter(text: str, expected: list[str]) -> None:
    plan = SlotPlan.from_adapters([], BASE.layers, max_rank=4, targets=parse_targets(text))

    assert ranks(plan) == dict.fromkeys(expected, 4)


def test_plan_of_nothing_has_no_slots() -> None:
    plan = SlotPlan.from_adapters([], BASE.layers)

    assert (plan.slots, plan.size, plan.max_rank) == ((), 0, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_rank": 4}, "'large' has rank 5, more than --max-rank 4.*Say --max-rank 5"),
        ({"max_rank": 0}, "at least 1"),
        ({"targets": ["qkv_proj"]}, "names 'qkv_proj'.*It|names 'qkv_proj', which is no linear layer.*q_proj, v_proj"),
        ({"targets": "nothing.*"}, "matches no linear layer"),
        ({"targets": "(["}, "not a regular expression"),
        ({"targets": ["embed_tokens"]}, "no linear layer"),
    ],
)
def test_reservation_that_cannot_be_is_refused(options: dict[str, Any], words: str, adapters: Any) -> None:
    with pytest.raises(UsageError, match=words):
        SlotPlan.from_adapters(adapters, BASE.layers, **options)


def test_a_base_without_linear_layers_is_called_so() -> None:
    embeddings = [layer for layer in BASE.layers if layer.kind == "embedding"]
    with pytest.raises(UsageError, match=r"The base has no linear layers\."):
        SlotPlan.from_adapters([], embeddings, targets=["q_proj"], max_rank=1)


def test_targets_without_adapter_need_a_rank() -> None:
    with pytest.raises(UsageError, match="--max-rank"):
        SlotPlan.from_adapters([], BASE.layers, targets=["q_proj"])


def test_per_shape_has_one_plan_per_shape_without_padding(adapters: Any, tmp_path: Path) -> None:
    twin = made(tmp_path / "twin", BASE, "q_proj", "v_proj", rank=2, seed=9)
    plans = SlotPlan.per_shape([*adapters, twin], BASE.layers)

    assert len(plans) == 3
    for adapter in (*adapters, twin):
        index = plan_for(plans, adapter)
        assert index is not None
        cost = plans[index].cost(adapter)
        assert cost.padded == cost.own


def test_cost_counts_the_padding(adapters: Any) -> None:
    cost = SlotPlan.from_adapters(adapters, BASE.layers).cost(adapters[0])

    assert cost.own == 4 * 2 * 2 * ((8 + 8) + (8 + 4))
    assert cost.padded == 4 * (2 * 5 * (8 + 8) + 2 * 2 * (8 + 4) + 3 * (8 + 12))


def test_adapter_that_fits_has_no_misfits(adapters: Any) -> None:
    plan = SlotPlan.from_adapters(adapters, BASE.layers)

    assert [misfits(plan, adapter) for adapter in adapters] == [[], [], []]


def test_misfits_name_missing_slots_and_ranks_and_the_export_that_reserves_them(adapters: Any, tmp_path: Path) -> None:
    plan = SlotPlan.from_adapters(adapters[:1], BASE.layers)
    wanted = made(tmp_path / "wanted", BASE, "q_proj", "up_proj", rank=3)

    slot, rank = misfits(plan, wanted)

    assert "up_proj in 2 layers (first model.layers.0.mlp.up_proj)" in slot.what
    assert "rank 3 at q_proj in 2 layers" in rank.what
    assert "room for 2" in rank.what
    for problem in (slot, rank):
        assert problem.remedy == "Export again with --max-rank 3 --targets q_proj,v_proj,up_proj."


def test_the_export_that_misfits_suggest_makes_room(adapters: Any, tmp_path: Path) -> None:
    plan = SlotPlan.from_adapters(adapters[:1], BASE.layers)
    wanted = made(tmp_path / "wanted", BASE, "layers.0.mlp.up_proj", "lm_head", rank=7)
    words = misfits(plan, wanted)[0].remedy.removesuffix(".").split()

    rank, targets = int(words[words.index("--max-rank") + 1]), parse_targets(words[words.index("--targets") + 1])
    larger = SlotPlan.from_adapters([], BASE.layers, max_rank=rank, targets=targets)

    assert misfits(larger, wanted) == misfits(larger, adapters[0]) == []


def test_misfits_name_layers_of_another_size(tmp_path: Path) -> None:
    plan = SlotPlan.from_adapters([made(tmp_path / "one", BASE, "q_proj")], BASE.layers)
    foreign = made(tmp_path / "two", base_of({"self_attn.q_proj": (8, 6)}), "q_proj")

    (problem,) = misfits(plan, foreign)

    assert "8 to 6 features" in problem.what
    assert "8 to 8" in problem.what


def _one(directory: Path, base: ModelSummary, scaling: float = 2.0) -> tuple[Adapter, Slot]:
    adapter = made(directory, base, "layers.0.self_attn.v_proj", rank=3, alpha=scaling * 3)
    return adapter, SlotPlan.from_adapters([adapter], base.layers, max_rank=5).slots[0]


def test_padding_is_exact(tmp_path: Path) -> None:
    adapter, slot = _one(tmp_path / "one", BASE)
    a, b = slot.fold(adapter.updates[0]).values()

    assert (a.shape, b.shape) == ((5, 8), (4, 5))
    assert a.dtype == b.dtype == np.dtype(np.float32)
    assert a.flags.c_contiguous
    assert b.flags.c_contiguous
    assert not a[3:].any()
    assert not b[:, 3:].any()
    # The matrices rather than their product, whose sum may be taken in another order for another rank.
    np.testing.assert_array_equal(a[:3], adapter.updates[0].tensors["a"].read())
    np.testing.assert_array_equal(
        b[:, :3], 2 * adapter.updates[0].tensors["b"].read()
    )  # exact: a scaling of 2 does not round


@pytest.mark.parametrize("scaling", [1.0, 0.1, 1 / 3, -2.7, 0.0])
def test_folding_is_one_float32_multiplication(scaling: float, tmp_path: Path) -> None:
    adapter, slot = _one(tmp_path / "one", BASE)
    update = attrs.evolve(adapter.updates[0], scaling=scaling)

    expected = update.tensors["b"].read() * np.float32(scaling)

    assert slot.fold(update)["b"][:, :3].tobytes() == expected.tobytes()


def test_untargeted_slot_is_zero(tmp_path: Path) -> None:
    _, slot = _one(tmp_path / "one", BASE)

    a, b = slot.fold(None).values()

    assert (a.shape, b.shape) == ((5, 8), (4, 5))
    assert not a.view(np.uint32).any()
    assert not b.view(np.uint32).any()


def test_folding_that_overflows_is_refused(tmp_path: Path) -> None:
    tensors = {key: value * np.float32(1e38) for key, value in tensors_of(BASE, "q_proj", "v_proj").items()}
    adapter = PeftFormat().read("huge", write(tmp_path, tensors, lora_alpha=2000), BASE)
    plan = SlotPlan.from_adapters([adapter], BASE.layers)

    with pytest.raises(AdapterError, match="more than float32 holds"):
        plan.slots[0].fold(adapter.updates[0])


def test_bind_visits_every_slot_once_in_order(adapters: Any) -> None:
    plan = SlotPlan.from_adapters(adapters, BASE.layers)

    bound = list(plan.bind(adapters[1]))

    assert tuple(slot for slot, _ in bound) == plan.slots
    assert [update.module for _, update in bound if update is not None] == [
        update.module for update in adapters[1].updates
    ]
