"""What a program calls the parts of slots where they are inputs of its methods, and the methods that take them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.slots.plan import SlotPlan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lora_core.adapters.slots.kinds import Values

_PARTS = ("a", "b")


def input_method(plan: int, kind: str) -> str:
    """Return the name of the method of `kind` (`forward`) that takes adapters of the plan with this index as inputs."""
    return f"lora{plan or ''}_{kind}"


def input_key(module: str, part: str) -> str:
    """Name the input, and the tensor of an adapter's file, that is `part` of the slot on `module`, as ExecuTorch's
    adapters for forward arguments do (pull request 19725).
    """
    return f"{module}.lora_{part}"


def slot_of(key: str) -> tuple[str, str]:
    """Return module and part of a name that `input_key` gave; raises `ValueError` for any other."""
    module, found, part = key.rpartition(".lora_")
    if not found or part not in _PARTS:
        raise ValueError(f"{key!r} is no part of a slot")
    return module, part


def slots_of(tensors: Iterable[tuple[str, npt.NDArray[np.float32]]]) -> Mapping[str, Values]:
    """Return `tensors` by name as A and B of every slot; raises `ValueError` if they are not pairs."""
    found: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for key, array in tensors:
        module, part = slot_of(key)
        found.setdefault(module, {})[part] = array
    if any(set(parts) != set(_PARTS) or len(parts["a"]) != parts["b"].shape[1] for parts in found.values()):
        raise ValueError("A and B of a layer do not belong together")
    return found


@attrs.frozen(kw_only=True)
class InputPlan:
    """What the methods of one slot plan take behind the base's inputs: names (`input_key`) and shapes, in order."""

    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, keys: Iterable[str], plan: SlotPlan) -> InputPlan:
        """Return the inputs `keys` with the shapes that the slots of `plan` have; raises `ValueError` if these are not
        all of its slots' parts.
        """
        shapes = {input_key(slot.module, part.name): part.shape for slot in plan.slots for part in slot.parts}
        ordered = tuple(keys)
        if len(ordered) != len(shapes) or set(ordered) != set(shapes):
            raise ValueError("its inputs are not those of the slot plan")
        return cls(keys=ordered, shapes=tuple(shapes[key] for key in ordered))
