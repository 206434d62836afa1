"""The tensors that fill slots, as a link stores them: from an adapter's files, or from a program that has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.adapter import Update
from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.plan import Slot
from lora_core.errors import AdapterError, BundleError
from lora_core_coreml.program.naming import Kind, method_name
from lora_core_coreml.program.object import ProgramObject, SlotPart
from lora_core_coreml.program.opened import OpenedProgram
from lora_core_coreml.storage import blobfile, mil, package
from lora_core_coreml.storage.blobfile import BlobKey

if TYPE_CHECKING:
    import numpy.typing as npt


@attrs.frozen(kw_only=True)
class LinkTensor:
    """One stored tensor: what identifies its bytes, and how to get them when they are written."""

    key: BlobKey
    read: Callable[[], bytes]


@attrs.frozen(kw_only=True)
class LinkAdapter:
    """An adapter ready to link against template `plan`: every part of every slot of it."""

    name: str
    plan: int
    tensors: Mapping[SlotPart, LinkTensor]


def from_adapter(placed: PlacedAdapter, *, float16: bool) -> LinkAdapter:
    """Return an adapter ready to link against the template of its plan; its tensors are read twice and never held.

    Raises `AdapterError` naming those that float16 cannot hold.
    """
    tensors: dict[SlotPart, LinkTensor] = {}
    too_large: list[SlotPart] = []
    for slot, update in placed.plan.bind(placed.adapter):
        for part, array in _stored(slot, update, float16):
            if not np.isfinite(array).all():
                too_large.append(part)
            read = partial(_bytes, slot, update, part, float16)
            tensors[part] = LinkTensor(key=blobfile.key_of_array(array), read=read)
    if too_large:
        raise AdapterError(
            f"Adapter {placed.name!r} has values that float16 cannot hold: {', '.join(map(str, too_large))}",
            where=placed.adapter.source,
            remedy="Export with --dtype fp32, or check lora_alpha and the strength.",
        )
    return LinkAdapter(name=placed.name, plan=placed.index, tensors=tensors)


def from_program(opened: OpenedProgram, program: ProgramObject, residents: Mapping[str, int]) -> list[LinkAdapter]:
    """Return the adapters `residents` (the plan of each by name) as `opened` stores them; raises `BundleError`."""
    tensors: dict[str, dict[SlotPart, LinkTensor]] = {name: {} for name in residents}
    for index, found in enumerate(opened.packages):
        plans = {plan for plan in residents.values() if _has_relocations(program, plan, index)}
        if not plans:
            continue
        start, size = found.region(package.WEIGHTS)
        with blobfile.mapped(opened.path) as buffer, memoryview(buffer) as view, view[start : start + size] as weights:
            places = {plan: _slot_places(program, plan, index) for plan in plans}
            for name, plan in residents.items():
                for part, blob in _references(opened, program, name, index, places.get(plan, ()), weights):
                    read = partial(_region, opened.path, start + blob.data_offset, blob.size)
                    tensors[name][part] = LinkTensor(key=blobfile.key_of(weights, blob), read=read)
    return [LinkAdapter(name=name, plan=plan, tensors=tensors[name]) for name, plan in residents.items()]


def _has_relocations(program: ProgramObject, plan: int, index: int) -> bool:
    return any(template.functions[index].relocations for template in program.templates[plan])


_SlotPlaces = Sequence[tuple[Kind, Sequence[tuple[SlotPart, mil.ReferencePlace]]]]


def _slot_places(program: ProgramObject, plan: int, index: int) -> _SlotPlaces:
    """Return where the templates of `plan` refer to parts of slots in partition `index`, by kind of method."""
    return [(template.kind, template.functions[index].slot_places) for template in program.templates[plan]]


def _references(
    opened: OpenedProgram, program: ProgramObject, name: str, index: int, places: _SlotPlaces, weights: memoryview
) -> Iterator[tuple[SlotPart, blobfile.MilBlob]]:
    """Yield the parts of slots that the methods of adapter `name` refer to in partition `index`, and where they are."""
    functions = opened.models[index].mlProgram.functions
    for kind, parts in places:
        method = method_name(name, kind, program.multifunction)
        if method not in functions:
            raise BundleError(f"The program has no function {method!r}", where=str(opened.path))
        function = functions[method]
        for part, place in parts:
            yield part, blobfile.blob_at(weights, place.of(function).offset, where=str(opened.path))


def _stored(
    slot: Slot, update: Update | None, float16: bool
) -> Iterator[tuple[SlotPart, npt.NDArray[np.float16] | npt.NDArray[np.float32]]]:
    """Yield the parts of `slot` that carry `update`, in the precision in which they are stored."""
    for name, array in slot.fold(update).items():
        part = SlotPart(module=slot.module, part=name)
        with np.errstate(over="ignore"):
            yield part, array.astype(np.float16) if float16 else array


def _bytes(slot: Slot, update: Update | None, part: SlotPart, float16: bool) -> bytes:
    return dict(_stored(slot, update, float16))[part].tobytes()


def _region(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
