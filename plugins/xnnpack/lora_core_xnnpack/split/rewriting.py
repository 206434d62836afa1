"""Link an adapter into a template: no torch, no ExecuTorch, no base weights.

The result equals what a full lowering with the adapter's tensors would have written, byte for byte, also where tensors
are equal: ExecuTorch stores equal data once (`exir/_serialize/_named_data_store.py`) and equal delegate payloads once
(`_extract_delegate_segments`), and so does this.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.plan import SlotPlan, padded_pair
from lora_core_xnnpack.files.data_file import DataBlob, serialize
from lora_core_xnnpack.files.named_blobs import Buffer
from lora_core_xnnpack.files.program_front import assemble
from lora_core_xnnpack.slot_tensors import KeySite, TensorRelocation
from lora_core_xnnpack.split.relocations import RelocationTable, read_table

Matrix = npt.NDArray[np.float32]
KeyChange = tuple[Iterable[KeySite], str]


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

    def segment(self, index: int) -> bytes:
        """Return the bytes of one segment."""
        span = self.table.segments[index]
        return self.program[span.offset : span.offset + span.size]


@attrs.frozen(kw_only=True)
class Linked:
    """What linking one adapter gave: the program's file, and the adapter's data file (None if embedded)."""

    program: Sequence[Buffer]
    data: Sequence[Buffer] | None


def rewrite(template: Template, changes: Iterable[KeyChange], embedded: Sequence[DataBlob] = ()) -> list[Buffer]:
    """Return the template's program with other keys at the given sites, and with `embedded` as its named data.

    Delegate payloads that have become equal are stored once, as ExecuTorch does.
    """
    table = template.table
    referenced = {reference.segment for reference in table.delegates}
    payloads = {index: bytearray(template.segment(index)) for index in referenced}
    for sites, key in changes:
        encoded = key.encode("ascii")
        for site in sites:
            payloads[site.payload][site.offset : site.offset + len(encoded)] = encoded
    segments: list[Buffer] = [
        template.segment(index) for index in range(len(table.segments)) if index not in referenced
    ]
    tail = bytearray(table.tail.data)
    placed: dict[bytes, int] = {}
    for reference in table.delegates:
        payload = bytes(payloads[reference.segment])
        if payload not in placed:
            placed[payload] = len(segments)
            segments.append(payload)
        struct.pack_into("<I", tail, reference.position, placed[payload])
    named = [(blob.key, len(segments) + index) for index, blob in enumerate(embedded)]
    segments += [blob.data for blob in embedded]
    return assemble(attrs.evolve(table.tail, data=tail), segments, named)


def link_matrices(template: Template, matrices: Mapping[str, tuple[Matrix, Matrix]], *, embed: bool) -> Linked:
    """Link A/B matrices, one pair for each slot of the template, at the template's shapes, scaling folded into B.

    With `embed` the adapter's data lies in the program file, else in a data file of its own.
    """
    tensors = template.table.tensors
    hashed: dict[int, DataBlob] = {}  # by identity: slots without effect share their matrices
    blobs = [_blob(matrices[tensor.module][tensor.matrix == "b"], tensor, hashed) for tensor in tensors]
    changes = [(tensor.sites, blob.key) for tensor, blob in zip(tensors, blobs, strict=True)]
    known = set(template.table.foundation_keys)
    stored = list({blob.key: blob for blob in blobs if blob.key not in known}.values())
    program = rewrite(template, changes, stored if embed else ())
    return Linked(program=program, data=None if embed else serialize(stored))


def link_adapter(template: Template, adapter: Adapter, plan: SlotPlan, *, embed: bool) -> Linked:
    """Link `adapter`, which must fit `plan`, the plan of `template`."""
    return link_matrices(template, slot_matrices(adapter, plan), embed=embed)


def slot_matrices(adapter: Adapter, plan: SlotPlan) -> dict[str, tuple[Matrix, Matrix]]:
    """Return A and B for every slot of `plan`: ranks zero-padded, scaling folded into B.

    A slot without effect (untargeted, or A is zero) has a zero B and a constant A, whose value only its shape decides.
    """
    return {slot.module: _without_zero_a(*padded_pair(pair, slot)) for slot, pair in plan.bind(adapter)}


def _without_zero_a(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    # XNNPACK's weight cache (ExecuTorch 1.5.1) finds packed weights by their bytes and a seed that is symmetric in rows
    # and columns, so it takes a zero A (rank, n) for a zero B (n, rank) and reads past its end. Drop when it does not.
    return (a, b) if a.any() else _idle_pair(a.shape[0], a.shape[1], b.shape[0])


@lru_cache(maxsize=256)
def _idle_pair(rank: int, in_features: int, out_features: int) -> tuple[Matrix, Matrix]:
    a = np.full((rank, in_features), (rank << 16 | in_features) * 2.0**-32, dtype=np.float32)
    return a, np.zeros((out_features, rank), dtype=np.float32)


def _blob(matrix: Matrix, tensor: TensorRelocation, hashed: dict[int, DataBlob]) -> DataBlob:
    if matrix.shape != tensor.shape:
        raise ValueError(f"{tensor.module} {tensor.matrix}: {matrix.shape} where the template has {tensor.shape}")
    if id(matrix) not in hashed:
        hashed[id(matrix)] = DataBlob.under_content_key(np.ascontiguousarray(matrix, dtype="<f4").data.cast("B"))
    return hashed[id(matrix)]
