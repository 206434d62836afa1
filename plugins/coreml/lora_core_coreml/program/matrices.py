"""Adapters' matrices as a link stores them: from an adapter's files, or from a program that already has them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lora_core.adapters.adapter import Adapter, LoraPair
from lora_core.adapters.slots.padding import padded_pair
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.errors import AdapterError, BundleError
from lora_core_coreml.linking import LinkAdapter, LinkTensor
from lora_core_coreml.program.naming import method_name
from lora_core_coreml.program.object import Matrix, ProgramObject
from lora_core_coreml.storage import blobfile, mil, package, pte

if TYPE_CHECKING:
    import numpy.typing as npt


def from_adapter(adapter: Adapter, plan: SlotPlan, index: int, *, float16: bool) -> LinkAdapter:
    """Return `adapter` ready to link against template `index`; matrices are read twice and never held.

    Raises `AdapterError` naming the matrices that float16 cannot hold.
    """
    tensors: dict[tuple[str, Matrix], LinkTensor] = {}
    too_large = []
    for slot, pair in plan.bind(adapter):
        a, b = _stored(pair, slot, float16)
        for matrix, array in (("a", a), ("b", b)):
            if not np.isfinite(array).all():
                too_large.append(f"{matrix.upper()} of {slot.module}")
        tensors[slot.module, "a"] = LinkTensor(
            key=blobfile.key_of_array(a), read=partial(_bytes, pair, slot, float16, 0)
        )
        tensors[slot.module, "b"] = LinkTensor(
            key=blobfile.key_of_array(b), read=partial(_bytes, pair, slot, float16, 1)
        )
    if too_large:
        raise AdapterError(
            f"Adapter {adapter.name!r} has values that float16 cannot hold: {', '.join(too_large)}",
            where=adapter.source,
            remedy="Export with --dtype fp32, or check lora_alpha and the strength.",
        )
    return LinkAdapter(name=adapter.name, plan=index, tensors=tensors)


def from_program(path: Path, program: ProgramObject, name: str, plan: int) -> LinkAdapter:
    """Return adapter `name` as the program at `path` stores it; raises `BundleError`."""
    tensors: dict[tuple[str, Matrix], LinkTensor] = {}
    packages = package.stored_packages(pte.read(path))
    for index, found in enumerate(packages):
        wanted = [r for template in program.templates[plan] for r in template.functions[index].relocations]
        if not wanted:
            continue
        model = mil.parse_model(found.read(package.MODEL))
        start, size = found.region(package.WEIGHTS)
        for template in program.templates[plan]:
            method = method_name(name, template.kind, program.multifunction)
            if method not in model.mlProgram.functions:
                raise BundleError(f"The program has no function {method!r}", where=str(path))
            references = [value for _, value in mil.blob_references(model.mlProgram.functions[method])]
            with blobfile.mapped(path) as buffer, memoryview(buffer) as view, view[start : start + size] as weights:
                for relocation in template.functions[index].relocations:
                    offset = references[relocation.reference].offset
                    blob = blobfile.blob_at(weights, offset, where=str(path))
                    read = partial(_region, path, start + blob.data_offset, blob.size)
                    tensor = LinkTensor(key=blobfile.key_of(weights, blob), read=read)
                    tensors[relocation.module, relocation.matrix] = tensor
    return LinkAdapter(name=name, plan=plan, tensors=tensors)


def _stored(
    pair: LoraPair | None, slot: Slot, float16: bool
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]] | tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    a, b = padded_pair(pair, slot)
    if not float16:
        return a, b
    with np.errstate(over="ignore"):
        return a.astype(np.float16), b.astype(np.float16)


def _bytes(pair: LoraPair | None, slot: Slot, float16: bool, which: int) -> bytes:
    return _stored(pair, slot, float16)[which].tobytes()


def _region(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
