"""Link an adapter into a template: no torch, no ExecuTorch, no base weights.

The result equals what a full lowering with the adapter's tensors would have written, byte for byte, also where tensors
are equal: ExecuTorch stores equal data once (`exir/_serialize/_named_data_store.py`) and equal delegate payloads once
(`_extract_delegate_segments`), and so does this.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots import SlotPlan, padded_pair
from lora_core_xnnpack.flat_tensor import Buffer, DataBlob, serialize
from lora_core_xnnpack.program_layout import Segment, assemble
from lora_core_xnnpack.relocations import KEY_LENGTH, RelocationTable, TensorRelocation, read_table

Matrix = npt.NDArray[np.float32]
DelegatePayloads = dict[int, bytearray]


@attrs.frozen(kw_only=True)
class Template:
    """A template opened for linking: the program file's bytes and its relocation table."""

    program: bytes
    table: RelocationTable

    @classmethod
    def read(cls, program: Path, table: Path) -> Template:
        """Read both files; raises `BundleError` naming the one that is damaged."""
        data = program.read_bytes()
        return cls(program=data, table=read_table(table, data))


@attrs.frozen(kw_only=True)
class Linked:
    """What linking one adapter gave: the program's file, and the adapter's data file (None if embedded)."""

    program: Sequence[Buffer]
    data: Sequence[Buffer] | None


def content_key(data: Buffer) -> str:
    """Return the key under which ExecuTorch stores an XNNPACK constant: the SHA-256 hex of its bytes."""
    return hashlib.sha256(data).hexdigest()


def _matrices(adapter: Adapter, plan: SlotPlan) -> dict[str, tuple[Matrix, Matrix]]:
    pairs = {pair.module: pair for pair in adapter.pairs}
    return {slot.module: padded_pair(pairs.get(slot.module), slot) for slot in plan.slots}


def _stored(
    matrices: Mapping[str, tuple[Matrix, Matrix]], tensors: Sequence[TensorRelocation]
) -> tuple[list[str], list[DataBlob]]:
    keys: list[str] = []
    blobs: list[DataBlob] = []
    for tensor in tensors:
        matrix = matrices[tensor.module][0 if tensor.matrix == "a" else 1]
        if matrix.shape != tensor.shape:
            raise ValueError(f"{tensor.module} {tensor.matrix}: {matrix.shape} where the template has {tensor.shape}")
        data = np.ascontiguousarray(matrix, dtype="<f4").data.cast("B")
        key = content_key(data)
        keys.append(key)
        blobs.append(DataBlob(key=key, alignment=tensor.alignment, data=data))
    return keys, blobs


def _distinct(blobs: Sequence[DataBlob], foundation_keys: Sequence[str]) -> list[DataBlob]:
    seen = set(foundation_keys)
    return [blob for blob in blobs if not (blob.key in seen or seen.add(blob.key))]  # type: ignore[func-returns-value]


def _patched_payloads(template: Template, keys: Sequence[str]) -> DelegatePayloads:
    payloads: DelegatePayloads = {}
    for reference in template.table.delegates:
        if reference.segment not in payloads:
            segment = template.table.segments[reference.segment]
            payloads[reference.segment] = bytearray(template.program[segment.offset : segment.offset + segment.size])
    for tensor, key in zip(template.table.tensors, keys, strict=True):
        for site in tensor.sites:
            payloads[site.segment][site.offset : site.offset + KEY_LENGTH] = key.encode("ascii")
    return payloads


def link_matrices(template: Template, matrices: Mapping[str, tuple[Matrix, Matrix]], *, embed: bool) -> Linked:
    """Link A/B matrices, one pair for each slot of the template, at the template's shapes, scaling folded into B.

    With `embed` the adapter's data lies in the program file, else in a data file of its own.
    """
    table = template.table
    keys, blobs = _stored(matrices, table.tensors)
    blobs = _distinct(blobs, table.foundation_keys)
    payloads = _patched_payloads(template, keys)
    delegate_segments = {reference.segment for reference in table.delegates}
    segments = [
        Segment(data=template.program[segment.offset : segment.offset + segment.size])
        for index, segment in enumerate(table.segments)
        if index not in delegate_segments
    ]
    tail = bytearray(table.tail.data)
    placed: dict[bytes, int] = {}
    for reference in table.delegates:
        payload = bytes(payloads[reference.segment])
        if payload not in placed:
            placed[payload] = len(segments)
            segments.append(Segment(data=payload))
        struct.pack_into("<I", tail, reference.position, placed[payload])
    named: list[tuple[str, int]] = []
    if embed:
        for blob in blobs:
            named.append((blob.key, len(segments)))
            segments.append(Segment(data=blob.data, alignment=blob.alignment))
    program = assemble(attrs.evolve(table.tail, data=tail), segments, named)
    return Linked(program=program, data=None if embed else serialize(blobs))


def link_adapter(template: Template, adapter: Adapter, plan: SlotPlan, *, embed: bool) -> Linked:
    """Link `adapter`, which must fit `plan`, the plan of `template`: smaller ranks are zero-padded, scaling folded."""
    return link_matrices(template, _matrices(adapter, plan), embed=embed)
