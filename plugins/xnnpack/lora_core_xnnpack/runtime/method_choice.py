"""Which method a session calls for an adapter: its own, or one that takes it as inputs, at any strength and blended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import attrs

from lora_core.adapters.slots.input_names import input_method
from lora_core.bundle.bundle import Bundle, Method
from lora_core.runtime.selection import as_linked
from lora_core.runtime.slot_inputs import SlotInputs
from lora_core.sharing.proof import require_foundation
from lora_core_xnnpack.inputs.linking import FORWARD, PROGRAM_FILE, input_plans, slots_in, takes_adapters

if TYPE_CHECKING:
    import torch


class MethodChoice(Protocol):
    """What a session asks of either way; adapters are given as selections, None is the base."""

    @property
    def shared(self) -> bool:
        """Whether one method is that of many adapters."""

    def method(self, adapter: str | None) -> Method:
        """Return the method to call; raises `UsageError` for unknown names, `UnsupportedError` for what cannot be
        done, `BundleError` for an adapter of another base.
        """

    def inputs(self, adapter: str | None) -> Sequence[torch.Tensor]:
        """Return what the method takes behind the base's inputs."""

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget an adapter, and what no adapter of those that are `left` needs."""


def method_choice(bundle: Bundle) -> MethodChoice:
    """Return how the adapters of `bundle` are called."""
    return SharedMethods(bundle) if takes_adapters(bundle) else OwnMethods(bundle)


@attrs.frozen
class OwnMethods:
    """Adapters as constants of methods of their own."""

    bundle: Bundle
    shared: ClassVar[bool] = False

    def method(self, adapter: str | None) -> Method:
        """Return the adapter's own method, as it was linked."""
        if adapter is None:
            return _base_method(self.bundle)
        name = as_linked(adapter, self.bundle.manifest.names, str(self.bundle.path))
        require_foundation(self.bundle, adapter=name)
        record = self.bundle.record(name)
        assert record is not None, "it is known"
        return record.methods[-1]

    def inputs(self, adapter: str | None) -> Sequence[torch.Tensor]:  # noqa: ARG002 - there are none
        """Return nothing."""
        return ()

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget nothing."""


class SharedMethods:
    """Adapters as files of A and B, which the method of a slot plan takes."""

    shared: ClassVar[bool] = True

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._slots: SlotInputs | None = None
        self._tensors: dict[str, Sequence[Any]] = {}

    def method(self, adapter: str | None) -> Method:
        """Return the base's method, or the one that takes adapters of the plan."""
        if adapter is None:
            return _base_method(self._bundle)
        plan = self._opened().load(adapter).plan
        return Method(name=input_method(plan, FORWARD), program=PROGRAM_FILE)

    def inputs(self, adapter: str | None) -> Sequence[torch.Tensor]:
        """Return A and B of all slots, in the order in which the plan's method takes them."""
        import torch

        if adapter is None:
            return ()
        if adapter not in self._tensors:
            self._tensors[adapter] = [torch.from_numpy(each) for each in self._opened().load(adapter).inputs]
        return self._tensors[adapter]

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget a selection, and the files that no selection of those that are `left` takes part of."""
        self._tensors.pop(str(adapter), None)
        if self._slots is not None:
            self._slots.unload(adapter, left)

    def _opened(self) -> SlotInputs:
        if self._slots is None:
            manifest = self._bundle.manifest
            self._slots = SlotInputs(
                input_plans(self._bundle),
                {each.name: each.plan for each in manifest.adapters},
                self._read,
                dtype="float32",
                where=str(self._bundle.path),
            )
        return self._slots

    def _read(self, name: str) -> Any:
        require_foundation(self._bundle, adapter=name)
        return slots_in(self._bundle, name)


def _base_method(bundle: Bundle) -> Method:
    return bundle.manifest.base_methods[-1]
