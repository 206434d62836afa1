"""Adapters as inputs of methods: handed on as they are, scaled, joined where there is room, filled up with zeros."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from lora_core.adapters.slots.input_names import InputPlan, input_key, input_method, slot_of, slots_of
from lora_core.adapters.slots.kinds import Values
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.errors import BundleError, UnsupportedError, UsageError
from lora_core.runtime.slot_inputs import SlotInputs

WIDTH, RANK = 3, 4
PLAN = SlotPlan(
    slots=tuple(Slot(module=name, in_features=WIDTH, out_features=WIDTH, rank=RANK) for name in ("first", "second"))
)
KEYS = tuple(input_key(module, part) for module in ("second", "first") for part in "ab")


def adapter(seed: int, rank: int, *modules: str) -> Mapping[str, Values]:
    """Return a random adapter as a file has it: filled up to the plan's rank."""
    made = {}
    for module in modules:
        generator = np.random.default_rng(seed)
        a, b = np.zeros((RANK, WIDTH), np.float32), np.zeros((WIDTH, RANK), np.float32)
        a[:rank] = generator.standard_normal((rank, WIDTH), np.float32)
        b[:, :rank] = generator.standard_normal((WIDTH, rank), np.float32)
        made[module] = {"a": a, "b": b}
    return made


FILES = {"one": adapter(1, 2, "first"), "two": adapter(2, 2, "first", "second"), "full": adapter(3, 4, "first")}


def inputs(files: Mapping[str, Mapping[str, Values]] = FILES) -> SlotInputs:
    plans = [InputPlan.of(KEYS, PLAN)]
    return SlotInputs(plans, dict.fromkeys(files, 0), files.__getitem__, dtype="float32", where="bundle")


def effect(found: SlotInputs, selection: str) -> dict[str, np.ndarray]:
    """Return what a selection adds to the weight of each module."""
    values = dict(zip(KEYS, found.load(selection).inputs, strict=True))
    return {module: values[f"{module}.lora_b"] @ values[f"{module}.lora_a"] for module in ("first", "second")}


def test_an_array_that_needs_no_change_is_handed_on_as_it_is() -> None:
    handed = inputs().load("two").inputs
    assert all(
        array is FILES["two"][module][part] for array, (module, part) in zip(handed, map(slot_of, KEYS), strict=True)
    )


def test_what_an_adapter_does_not_have_is_zero() -> None:
    assert not effect(inputs(), "one")["second"].any()


def test_a_strength_multiplies_the_effect_and_leaves_the_file() -> None:
    found = inputs()
    weaker, whole = effect(found, "two@-0.5"), effect(found, "two")
    assert np.allclose(weaker["second"], -0.5 * whole["second"], rtol=1e-6)


def test_a_blend_is_the_sum_of_its_adapters() -> None:
    found = inputs()
    expected = 0.5 * effect(found, "one")["first"] + 0.25 * effect(found, "two")["first"]
    # Four products of numbers below 3, each rounded.
    assert np.allclose(effect(found, "one:0.5+two:0.25")["first"], expected, atol=1e-5)


def test_a_blend_without_room_says_how_much_it_needs() -> None:
    with pytest.raises(UnsupportedError, match=r"needs rank 6.*--max-rank 6"):
        inputs().load("full+one")


def test_a_blend_is_as_a_method_takes_it() -> None:
    assert all(array.flags.c_contiguous for array in inputs().load("one+two").inputs)


def test_an_unknown_adapter_is_refused() -> None:
    with pytest.raises(UsageError, match="'on'"):
        inputs().load("on@0.5")


def test_a_file_that_does_not_fit_the_program_is_refused() -> None:
    wide = {"first": {"a": np.zeros((RANK, WIDTH + 1), np.float32), "b": np.zeros((WIDTH, RANK), np.float32)}}
    with pytest.raises(BundleError, match=r"first.lora_a of shape \(4, 4\) does not fit"):
        inputs({"wide": wide}).load("wide")


def test_what_no_selection_takes_part_of_is_forgotten() -> None:
    reads: list[str] = []

    def read(name: str) -> Mapping[str, Values]:
        reads.append(name)
        return FILES[name]

    found = SlotInputs([InputPlan.of(KEYS, PLAN)], {"one": 0, "two": 0}, read, dtype="float32", where="bundle")
    found.load("one+two")
    found.load("two@0.5")
    found.unload("one+two", ["two@0.5", None])
    found.load("two")
    found.load("one")
    assert reads == ["one", "two", "one"]


def test_inputs_are_in_the_type_of_the_program() -> None:
    half = SlotInputs([InputPlan.of(KEYS, PLAN)], {"one": 0}, FILES.__getitem__, dtype=np.float16, where="bundle")
    assert {array.dtype for array in half.load("one").inputs} == {np.dtype(np.float16)}


def test_methods_of_plans_have_names_of_their_own() -> None:
    assert [input_method(plan, "forward") for plan in range(3)] == ["lora_forward", "lora1_forward", "lora2_forward"]


@pytest.mark.parametrize("keys", [KEYS[1:], (*KEYS, "third.lora_a"), (*KEYS[1:], KEYS[1])])
def test_inputs_that_are_not_those_of_the_plan_are_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="slot plan"):
        InputPlan.of(keys, PLAN)


@pytest.mark.parametrize("key", ["first", "first.lora_c", "first.lora_"])
def test_a_name_that_is_no_part_of_a_slot_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="no part of a slot"):
        slot_of(key)


def test_matrices_that_are_no_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        slots_of([("first.lora_a", np.zeros((2, WIDTH), np.float32))])
