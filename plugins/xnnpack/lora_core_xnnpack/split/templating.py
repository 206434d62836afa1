# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Make a template: lower placeholders and find where their keys stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import flatbuffers
import numpy.typing as npt
from executorch.exir import ExecutorchProgramManager
from executorch.exir._serialize import _flatbuffer_program
from executorch.exir._serialize.generated.executorch_flatbuffer.Program import Program, ProgramT

from lora_core.errors import LoraCoreError
from lora_core.pte import SEGMENT_ALIGNMENT
from lora_core_xnnpack.adapter_dtype import StoredParts
from lora_core_xnnpack.files.program_front import ProgramTail
from lora_core_xnnpack.files.program_root import ProgramRoot, SegmentOffsets
from lora_core_xnnpack.lowering.lowering import LORA_TAG, Lowered
from lora_core_xnnpack.slot_tensors import KeySite, TensorRelocation, find_sites, not_stored, tensor_blob
from lora_core_xnnpack.split.relocations import DelegateReference, RelocationTable, SplitTemplate, TemplateSegment


def _pack_vector(builder: flatbuffers.Builder, items: Iterable[Any]) -> int:
    tables = [item.Pack(builder) for item in items]
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


def _segment_offsets(table: Any) -> SegmentOffsets:
    return SegmentOffsets(segment=int(table.segmentIndex), offsets=tuple(int(offset) for offset in table.offsets))


def _pack_tail(program: bytes, flatbuffer_size: int) -> ProgramTail:
    """Pack the plans of `program` again, in the order of `ProgramT.Pack`, and keep the builder's state."""
    _flatbuffer_program._patch_generated_flatbuffer_aliases()
    _flatbuffer_program._install_fast_packers()
    unpacked = ProgramT.InitFromPackedBuf(program)
    builder = flatbuffers.Builder(flatbuffer_size)
    vectors = tuple(
        _pack_vector(builder, items)
        for items in (unpacked.executionPlan, unpacked.constantBuffer or (), unpacked.backendDelegateData or ())
    )
    return ProgramTail(
        data=bytes(builder.Bytes[builder.head :]),
        min_align=int(builder.minalign),
        vectors=(vectors[0], vectors[1], vectors[2]),
        vtables=tuple((tuple(int(part) for part in key), int(offset)) for key, offset in builder.vtables.items()),
        version=int(unpacked.version),
        header_length=_header_length(),
        file_identifier=program[4:8],
        constant_segment=None if unpacked.constantSegment is None else _segment_offsets(unpacked.constantSegment),
        mutable_segments=(
            None
            if unpacked.mutableDataSegments is None
            else tuple(_segment_offsets(table) for table in unpacked.mutableDataSegments)
        ),
    )


def _header_length() -> int:
    # The header is padded to the largest force_align of the schema (serialize_pte_binary); what stands behind it is
    # the flatbuffer from its 9th byte on, so the root offset tells nothing, but the schema does.
    from executorch.exir._serialize._program import _ExtendedHeader
    from executorch.exir._serialize.padding import aligned_size

    schema = _flatbuffer_program._get_schema_info(None, None)
    return int(aligned_size(_ExtendedHeader.EXPECTED_LENGTH, schema.max_alignment))


def _delegates(program: bytes, tail_offset: int) -> tuple[DelegateReference, ...]:
    root = Program.GetRootAs(program)
    references = []
    for plan in (root.ExecutionPlan(index) for index in range(root.ExecutionPlanLength())):
        for processed in (plan.Delegates(index).Processed() for index in range(plan.DelegatesLength())):
            position = processed._tab.Pos + processed._tab.Offset(6) - tail_offset
            references.append(DelegateReference(position=int(position), segment=int(processed.Index())))
    return tuple(references)


def _stored_order(manager: ExecutorchProgramManager) -> tuple[str, ...]:
    """Return the keys of the LoRA data in stored order."""
    entries = manager._named_data.external_data.get(LORA_TAG, {}) if manager._named_data else {}
    if any(SEGMENT_ALIGNMENT % entry.alignment for entry in entries.values()):
        raise LoraCoreError("ExecuTorch asks for LoRA data at another alignment than that of its segments.")
    return tuple(entries)


def make_template(
    lowered: Lowered, placeholders: Mapping[str, StoredParts], foundation: Mapping[str, int]
) -> SplitTemplate:
    """Find every placeholder of a lowered program, as `find_template` does."""
    return find_template(lowered.pte, _stored_order(lowered.manager), placeholders, foundation)


def find_template(
    program: bytes,
    order: Sequence[str],
    placeholders: Mapping[str, StoredParts],
    foundation: Mapping[str, int],
) -> SplitTemplate:
    """Find every placeholder of a program file whose LoRA data is stored under the keys `order`.

    `placeholders` are the distinct values that were lowered, as they are stored, by module and part; `foundation` maps
    the foundation's keys to their sizes in bytes. Raises `LoraCoreError` if a placeholder is not stored, or a key
    stands nowhere: then this program cannot be linked.
    """
    root = ProgramRoot.read(program)
    size = root.header.program_size
    tail = _pack_tail(program, size)
    tail_offset = size - len(tail.data)
    if program[tail_offset:size] != tail.data:
        raise LoraCoreError("The lowered program is not laid out as ExecuTorch 1.5.1 lays programs out.")
    delegates = _delegates(program, tail_offset)
    tensors = _tensors(program, order, placeholders, {each.segment for each in delegates})
    sizes = {tensor.size for tensor in tensors}
    return SplitTemplate(
        program=program,
        table=RelocationTable(
            tail_offset=tail_offset,
            tail_size=len(tail.data),
            tail=tail,
            segments=tuple(TemplateSegment(offset=offset, size=length) for offset, length in root.spans),
            delegates=delegates,
            tensors=tensors,
            foundation_keys=tuple(sorted(key for key, size in foundation.items() if size in sizes)),
        ),
    )


def _tensors(
    program: bytes, order: Sequence[str], placeholders: Mapping[str, StoredParts], delegated: set[int]
) -> tuple[TensorRelocation, ...]:
    """Return every part of every slot in stored order, with the places of its key in the payloads of `delegated`; then
    those that lie inside the program.
    """
    root = ProgramRoot.read(program)
    segments = root.segments()
    payloads = {index: segments[index] for index in sorted(delegated)}
    arrays = {
        tensor_blob(array, part).key: (module, part, array)
        for module, values in placeholders.items()
        for part, array in values.items()
    }
    tensors = []
    for key in order:
        if key not in arrays:
            raise LoraCoreError(f"{key} is stored for an adapter, and is no tensor of a slot.")
        module, part, array = arrays.pop(key)
        sites = find_sites(payloads, key)
        if not sites or program.count(key.encode("ascii")) != len(sites):
            raise LoraCoreError(f"The key of {module} {part} stands outside of the delegates' payloads.")
        tensors.append(_relocation(module, part, array, sites))
    constants = root.constant_segment
    offsets = set() if constants is None else {(constants.segment, offset) for offset in constants.offsets}
    for module, part, array in arrays.values():
        data = tensor_blob(array, part).data
        found = [
            (index, offset) for index, offset in sorted(offsets) if segments[index][offset : offset + len(data)] == data
        ]
        if len(found) != 1:
            raise not_stored(f"{module} {part}" for module, part, _ in arrays.values())
        sites = tuple(KeySite(payload=index, offset=offset) for index, offset in found)
        tensors.append(attrs.evolve(_relocation(module, part, array, sites), inside=True))
    return tuple(tensors)


def _relocation(module: str, part: str, array: npt.NDArray[Any], sites: tuple[KeySite, ...]) -> TensorRelocation:
    return TensorRelocation(module=module, part=part, shape=array.shape, sites=sites, dtype=array.dtype.name)
