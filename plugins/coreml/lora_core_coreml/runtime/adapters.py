"""How a session calls adapters: as methods of their own, or as inputs of one method, at any strength and blended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.adapters.slots.input_names import InputPlan, input_method
from lora_core.bundle.bundle import Bundle
from lora_core.runtime.selection import as_linked
from lora_core.runtime.slot_inputs import SlotInputs
from lora_core_coreml.adapter_files import opened, slot_values
from lora_core_coreml.program.naming import KEYS, Kind, method_name
from lora_core_coreml.runtime.evaluation.program import EvaluatedProgram

Array = npt.NDArray[Any]


class CalledAdapters(Protocol):
    """What a session asks of either way; adapters are given as selections, None is the base."""

    def load(self, adapter: str | None) -> None:
        """Make what a call needs; raises `UsageError` for unknown names, `UnsupportedError` for what cannot be done."""

    def method(self, adapter: str | None, kind: Kind) -> str:
        """Return the method to call for an adapter that is loaded."""

    def inputs(self, adapter: str | None, kind: Kind) -> Sequence[Array]:
        """Return what the method takes behind the base's inputs."""

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget an adapter, and what no adapter of those that are `left` needs."""


@attrs.frozen
class AdaptersAsMethods:
    """Adapters as constants of methods of their own."""

    bundle: Bundle
    multifunction: bool

    def load(self, adapter: str | None) -> None:
        """Refuse everything but an adapter as it was linked."""
        if adapter is not None:
            as_linked(adapter, self.bundle.manifest.names, str(self.bundle.path))

    def method(self, adapter: str | None, kind: Kind) -> str:
        """Return the adapter's own method."""
        return method_name(adapter, kind, self.multifunction)

    def inputs(self, adapter: str | None, kind: Kind) -> Sequence[Array]:  # noqa: ARG002 - there are none
        """Return nothing."""
        return ()

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget nothing."""


class AdaptersAsInputs:
    """Adapters as files of A and B, which the methods of a slot plan take."""

    def __init__(self, bundle: Bundle, program: EvaluatedProgram) -> None:
        manifest = bundle.manifest
        plans = [_plan(number, program) for number in range(len(manifest.plans))]
        self._slots = SlotInputs(
            plans,
            {each.name: each.plan for each in manifest.adapters},
            lambda name: slot_values(opened(bundle, name)),
            dtype=program.input_types(input_method(0, "forward"))[-1] if plans else np.float32,
            where=str(bundle.path),
        )

    def load(self, adapter: str | None) -> None:
        """Read the files of an adapter, or of all that a selection names; raises `BundleError` for damaged ones."""
        if adapter is not None:
            self._slots.load(adapter)

    def method(self, adapter: str | None, kind: Kind) -> str:
        """Return the base's method, or the one that takes adapters of the plan."""
        return kind if adapter is None else input_method(self._slots.load(adapter).plan, kind)

    def inputs(self, adapter: str | None, kind: Kind) -> Sequence[Array]:  # noqa: ARG002 - methods of a plan take the same
        """Return A and B of all slots, in the order in which the plan's methods take them."""
        return () if adapter is None else self._slots.load(adapter).inputs

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget a selection, and the files that no selection of those that are `left` takes part of."""
        self._slots.unload(adapter, left)


def _plan(number: int, program: EvaluatedProgram) -> InputPlan:
    method = input_method(number, "forward")
    keys = tuple(program.constant(f"{method}{KEYS}"))
    shapes = program.input_shapes(method)
    return InputPlan(keys=keys, shapes=tuple(map(tuple, shapes[len(shapes) - len(keys) :])))
