"""The values of an adapter's slots read back from a bundle, as they were linked."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_core.adapters.slots.kinds import Values
from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError, UnsupportedError
from lora_core.pte import Buffer
from lora_core_xnnpack.artifacts import FOUNDATION_FILE
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.named_blobs import NamedBlob, mapped
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.files.program_root import NOT_WHOLE, ProgramRoot, damaged, program_blobs
from lora_core_xnnpack.multimethod.linking import PROGRAM_FILE, TABLE_FILE, TEMPLATE_FILE
from lora_core_xnnpack.multimethod.relocations import MultimethodTemplate
from lora_core_xnnpack.multimethod.residents import Resident
from lora_core_xnnpack.slot_tensors import KEY_LENGTH, TensorRelocation, without_idle_constants
from lora_core_xnnpack.split.inside import inside
from lora_core_xnnpack.split.linking import template_files
from lora_core_xnnpack.split.relocations import SplitTemplate

KeyedTensors = Sequence[tuple[TensorRelocation, str]]


def stored_values(bundle: Bundle, name: str, *, in_one_program: bool) -> Mapping[str, Values]:
    """Return the values of every slot of the plan of adapter `name` by module, each tensor checked against its key.

    Raises `BundleError` naming the file that is damaged.
    """
    if bundle.manifest.policy.get("lora") is not None:
        raise UnsupportedError(
            f"The bundle stores adapter {name!r} in a smaller type than it was read in.",
            remedy=f"Pack it from its directory: {name}=DIR.",
        )
    record = bundle.record(name)
    assert record is not None, "the caller names an adapter of the bundle"
    plan = record.adapter.plan
    keys = (_keys_in_one_program if in_one_program else _keys_of_program)(bundle, name, plan)
    stored = {key: (data, blob) for data, blobs in _places(bundle, name, in_one_program) for key, blob in blobs.items()}
    values: dict[str, dict[str, np.ndarray]] = {}
    for tensor, key in keys:
        data, blob = stored.get(key, (b"", None))
        raw = b"" if blob is None else bytes(data[blob.offset : blob.offset + blob.size])
        if len(raw) != tensor.size or hashlib.sha256(raw).hexdigest() != key:
            raise BundleError(
                f"The bundle does not hold {tensor.module} {tensor.part} of adapter {name!r} as it was linked.",
                where=str(bundle.path),
                remedy="Export the bundle again, or restore it from a copy.",
            )
        array = np.frombuffer(raw, "<f4").reshape(tensor.shape)
        values.setdefault(tensor.module, {})[tensor.part] = array
    if not in_one_program:
        for table in inside(bundle, name, plan):
            values.setdefault(table.tensor.module, {})[table.tensor.part] = table.values
    return without_idle_constants(values)


def _places(bundle: Bundle, name: str, in_one_program: bool) -> Iterator[tuple[Buffer, Mapping[str, NamedBlob]]]:
    """Yield files that may hold an adapter's tensors, with their blobs by key."""
    program = PROGRAM_FILE if in_one_program else f"{name}.pte"
    readers: dict[str, Callable[[Buffer, Path], list[NamedBlob]]] = {
        FOUNDATION_FILE: stored_blobs,
        program: program_blobs,
        f"{name}.ptd": stored_blobs,
    }
    record = bundle.record(name)
    for artifact in (*bundle.manifest.base_artifacts, *(record.artifacts if record is not None else ())):
        if artifact.path in readers:
            data = mapped(bundle.file(artifact))
            yield data, {blob.key: blob for blob in readers[artifact.path](data, bundle.file(artifact))}


def _keys_of_program(bundle: Bundle, name: str, plan: int) -> KeyedTensors:
    program, table_file = map(bundle.file, template_files(plan))
    template = SplitTemplate.read(program, table_file, bundle.manifest.foundation)
    path = bundle.file(f"{name}.pte")
    data = mapped(path)
    table = template.table
    try:
        root = ProgramRoot.read(data)
        tail = data[root.header.program_size - table.tail_size : root.header.program_size]
        placed = {each.segment: struct.unpack_from("<I", tail, each.position)[0] for each in table.delegates}
        keyed = [(tensor, tensor.sites[0]) for tensor in table.tensors if not tensor.inside]
        starts = [root.spans[placed[site.payload]][0] + site.offset for _, site in keyed]
        keys = [data[start : start + KEY_LENGTH].decode("ascii") for start in starts]
    except NOT_WHOLE as error:
        raise damaged(path, error) from error
    return list(zip([tensor for tensor, _ in keyed], keys, strict=True))


def _keys_in_one_program(bundle: Bundle, name: str, plan: int) -> KeyedTensors:
    template = MultimethodTemplate.read(bundle.file(TEMPLATE_FILE), bundle.file(TABLE_FILE), bundle.manifest.foundation)
    path = bundle.file(PROGRAM_FILE)
    resident = Resident.of_program(name, plan, ProgramParts.read(path), template, path)
    return list(zip(template.table.plans[plan].tensors, resident.keys, strict=True))
