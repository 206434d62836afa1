"""Slot kinds: another one is a class and a line in a table; plans, injection and verification need nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import torch

from lora_core.adapters.adapter import Adapter, Update
from lora_core.adapters.composites import compose
from lora_core.adapters.slots import kinds
from lora_core.adapters.slots.choice import place, place_alone
from lora_core.adapters.slots.kinds import Extent, Part, SlotKind, Values, is_zero
from lora_core.adapters.slots.misfits import misfits
from lora_core.adapters.slots.modules import LoraLinear, SlotModule
from lora_core.adapters.slots.placeholders import placeholder_values
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.bundle.manifest import dumps, loads
from lora_core.models.injection import eject, inject, slot_parameters
from tests.adapters.toy import base_of, made
from tests.bundle.conftest import Bundles

BASE = base_of()
Q = "model.layers.0.self_attn.q_proj"


@attrs.frozen(kw_only=True)
class Held:
    """A tensor in memory, as a lazy tensor."""

    array: npt.NDArray[np.float32]
    name: str = "held"
    dtype: str = "F32"
    path: Path = Path("nowhere")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self) -> npt.NDArray[np.float32]:
        return self.array


class Shifted(SlotModule):
    """`out = base(x) + delta`."""

    PARTS: Mapping[str, str] = {"delta": "delta"}

    def __init__(self, base: torch.nn.Module, delta: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.delta = torch.nn.Parameter(delta, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.delta


class Vector(SlotKind):
    """A trained bias, as what it adds to the base's."""

    name = "vector"

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        return (Part(name="delta", shape=(extent.out_features,)),)

    def extent(self, update: Update) -> Extent:
        (width,) = update.tensors["delta"].shape
        return Extent(in_features=BASE.layer(update.module).in_features, out_features=width, rank=1)

    def fold(self, update: Update | None, extent: Extent) -> Values:
        if update is None:
            return {"delta": np.zeros(extent.out_features, np.float32)}
        return {"delta": kinds.scaled(update.tensors["delta"], update.scaling)}

    def combine(self, updates: Sequence[Update]) -> Update:
        total = sum(self.fold(update, self.extent(update))["delta"] for update in updates)
        return attrs.evolve(updates[0], tensors={"delta": Held(array=np.asarray(total, np.float32))}, scaling=1.0)

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        return Shifted(module, values["delta"])


@pytest.fixture(autouse=True)
def vector_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**kinds.KINDS, "vector": Vector()}
    monkeypatch.setattr(kinds, "KINDS", known)
    monkeypatch.setattr("lora_core.bundle.manifest.KINDS", known)


@pytest.fixture
def both(tmp_path: Path) -> Adapter:
    """An adapter with a low-rank update and a shifted bias on one layer."""
    low_rank = made(tmp_path / "plain", BASE, "layers.0.self_attn.q_proj")
    delta = np.arange(8, dtype=np.float32)
    shift = Update(module=Q, kind="vector", tensors={"delta": Held(array=delta)}, scaling=0.5)
    return attrs.evolve(low_rank, updates=(*low_rank.updates, shift))


def test_a_plan_has_a_slot_for_each_kind_on_a_layer(both: Adapter) -> None:
    plan = SlotPlan.from_adapters([both], BASE.layers)

    assert [(slot.module, slot.kind) for slot in plan.slots] == [(Q, "low_rank"), (Q, "vector")]
    assert plan.size == plan.cost(both).own == 4 * (2 * (8 + 8) + 8)


def test_an_adapter_of_a_kind_that_a_plan_lacks_does_not_fit(both: Adapter, tmp_path: Path) -> None:
    plan = SlotPlan.from_adapters([made(tmp_path / "other", BASE, "layers.0.self_attn.q_proj")], BASE.layers)

    assert not plan.holds(both)
    assert len(misfits(plan, both)) == 1


def test_both_kinds_act_on_the_layer_and_leave_it_as_it_was(both: Adapter) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8))
    base = module[0]
    (placed,) = place_alone([both], BASE.layers)
    values = placed.values_by_module()
    x = torch.rand(3, 8)
    expected = base(x) + x @ torch.from_numpy(values[Q]["b"] @ values[Q]["a"]).T + torch.arange(8) * 0.5

    inject(module, placed.plan, {Q: "0"}, values)

    assert isinstance(module[0], Shifted)
    assert isinstance(module[0].base, LoraLinear)
    assert slot_parameters(module) == {"0.delta", "0.base.lora_a.weight", "0.base.lora_b.weight"}
    torch.testing.assert_close(module(x), expected)
    assert eject(module)[0] is base


def test_a_composite_joins_updates_kind_by_kind(both: Adapter) -> None:
    mixed = compose("mix", [(both, 1.0), (both, 0.5)])
    (placed,) = place([mixed], [SlotPlan.from_adapters([mixed], BASE.layers)])
    values = placed.values_by_module()[Q]

    np.testing.assert_array_equal(values["delta"], np.arange(8, dtype=np.float32) * 0.75)
    assert values["a"].shape == (4, 8)


def test_placeholders_fill_every_part(both: Adapter) -> None:
    values = placeholder_values(SlotPlan.from_adapters([both], BASE.layers))

    assert {part: array.shape for part, array in values[Q].items()} == {"a": (2, 8), "b": (8, 2), "delta": (8,)}


def test_a_manifest_keeps_the_kind_of_a_slot(both: Adapter) -> None:
    plan = SlotPlan.from_adapters([both], BASE.layers)
    manifest = attrs.evolve(Bundles().manifest({}), plans=(plan,))

    assert loads(dumps(manifest), "manifest.json").plans == (plan,)


def test_a_manifest_with_a_kind_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = Slot(module=Q, in_features=8, out_features=8, rank=1, kind="vector")
    data = dumps(attrs.evolve(Bundles().manifest({}), plans=(SlotPlan(slots=(slot,)),)))
    monkeypatch.setattr("lora_core.bundle.manifest.KINDS", {"low_rank": None})

    with pytest.raises(Exception, match="is 'vector'; this lora-core knows low_rank"):
        loads(data, "manifest.json")


def test_an_adapter_whose_every_update_is_zero_does_nothing(both: Adapter) -> None:
    zero = Update(module=Q, kind="vector", tensors={"delta": Held(array=np.zeros(8, np.float32))}, scaling=1.0)

    assert is_zero(attrs.evolve(both, updates=(zero,)))
    assert not is_zero(both)
