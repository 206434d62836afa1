"""Linking: a program object and adapters become a `.pte`. Export and `add` both end here, so they write equal bytes."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs

from lora_core.pte import aligned
from lora_core_coreml.program.metadata import adapter_plans
from lora_core_coreml.program.naming import method_name
from lora_core_coreml.program.object import Function, MethodObject, PartitionFoundation, ProgramObject
from lora_core_coreml.program.slot_tensors import LinkAdapter, LinkTensor
from lora_core_coreml.storage import blobfile, mil, package, pte
from lora_core_coreml.storage.blobfile import BlobKey, MilBlob
from lora_core_coreml.storage.messages import MilFunction

_CHUNK = 1 << 20
_Form = tuple[int, int, int]
"""Type, bytes and padding of a blob."""
_DEFAULT_FUNCTION = "forward"
_REFERENCE_MAGIC = b"CMJR"  # a JSON reference into named data instead of a model (ExecuTorch's coreml_preprocess.py)


@attrs.frozen(kw_only=True)
class _Placed:
    blob: MilBlob
    tensor: LinkTensor


def link(program: ProgramObject, adapters: Sequence[LinkAdapter], path: Path) -> str:
    """Write `program` with `adapters` to `path` and return the SHA-256 of the file; the order given has no meaning."""
    adapters = sorted(adapters, key=lambda adapter: adapter.name)
    methods: list[tuple[str, MethodObject, LinkAdapter | None]] = [(m.kind, m, None) for m in program.methods]
    for adapter in adapters:
        for template in program.templates[adapter.plan]:
            methods.append((method_name(adapter.name, template.kind, program.multifunction), template, adapter))
    nobody = LinkAdapter(name="", plan=0, tensors={})
    methods += [(name, method, nobody) for name, method in program.called]
    partitions = [_Partition.link(index, program, methods) for index in range(len(program.foundations))]

    segments: list[pte.Segment] = []
    if program.constant_offsets:
        segments.append(pte.Segment(size=len(program.constant_data), chunks=[program.constant_data]))
    plans = []
    for name, method, _ in methods:
        delegates = []
        for delegate in method.plan["delegates"]:
            reference = _reference(partitions[delegate["partition"]].key, name)
            processed = {"location": "SEGMENT", "index": len(segments)}
            segments.append(pte.Segment(size=len(reference), chunks=[reference]))
            delegates.append({"id": delegate["id"], "processed": processed, "compile_specs": delegate["compile_specs"]})
        plans.append({**method.plan, "name": name, "delegates": delegates})
    plans.extend(program.constants)
    plans.extend(adapter_plans([adapter.name for adapter in adapters], program.multifunction))
    named = []
    for partition in partitions:
        named.append({"key": partition.key, "segment_index": len(segments)})
        segments.append(partition.segment())
    return pte.write(path, _flatbuffer(program, plans, named), segments)


def _flatbuffer(program: ProgramObject, plans: list[pte.Program], named: list[pte.Program]) -> pte.Program:
    flatbuffer: pte.Program = {
        "version": program.version,
        "execution_plan": plans,
        "constant_buffer": [],
        "backend_delegate_data": [],
        "segments": [],
        "named_data": named,
    }
    if program.constant_offsets:
        flatbuffer["constant_segment"] = {"segment_index": 0, "offsets": list(program.constant_offsets)}
    return flatbuffer


def _reference(key: str, function: str) -> bytes:
    return _REFERENCE_MAGIC + json.dumps({"version": 1, "key": key, "functionName": function}).encode()


@attrs.frozen(kw_only=True)
class _Partition:
    """One partition of all methods: a multifunction CoreML package, flattened."""

    key: str
    foundation: PartitionFoundation
    placed: tuple[_Placed, ...]
    end: int
    package: package.Package

    @classmethod
    def link(
        cls, index: int, program: ProgramObject, methods: Sequence[tuple[str, MethodObject, LinkAdapter | None]]
    ) -> _Partition:
        foundation = program.foundations[index]
        pool = _Pool(foundation)
        model = mil.new_model()
        model.CopyFrom(foundation.shell)
        model.description.defaultFunctionName = _DEFAULT_FUNCTION
        interfaces: dict[str, tuple[list[str], list[str]]] = {}
        for name, method, adapter in methods:
            function = method.functions[index]
            message = model.mlProgram.functions[name]
            message.CopyFrom(function.message)
            _relocate(message, function, adapter, pool)
            description = model.description.functions.add()
            description.CopyFrom(function.description)
            description.name = name
            interfaces[name] = ([i.name for i in description.input], [o.name for o in description.output])
        model_bytes = mil.serialize(model)
        placed, end = tuple(pool.placed), pool.end
        identifier = _identifier(foundation, placed, model_bytes)
        built = package.Package.build(
            index=index,
            identifier=identifier,
            interfaces=interfaces,
            model=model_bytes,
            weights_size=end if foundation.blobs or placed else 0,
        )
        return cls(key=f"coreml_{identifier}", foundation=foundation, placed=placed, end=end, package=built)

    def segment(self) -> pte.Segment:
        """Return the flattened package as a segment whose weights are streamed."""
        return pte.Segment(size=self.package.size, chunks=self._chunks())

    def _chunks(self) -> Iterator[bytes]:
        if self.package.weights_size:
            yield blobfile.header(len(self.foundation.blobs) + len(self.placed))
            yield from _file_chunks(self.foundation, skip=blobfile.ALIGNMENT)
            position = self.foundation.size
            for entry in self.placed:
                yield bytes(entry.blob.offset - position)
                yield blobfile.record(entry.blob)
                yield entry.tensor.read()
                position = entry.blob.end
            yield bytes(self.end - position)
        yield from self.package.rest()


class _Pool:
    """Places adapters' tensors behind the foundation, equal bytes once: those that the foundation has lie there."""

    def __init__(self, foundation: PartitionFoundation) -> None:
        self.placed: list[_Placed] = []
        self._foundation = foundation
        self._alike: dict[_Form, list[MilBlob]] = defaultdict(list)
        for blob in foundation.blobs:
            self._alike[blob.dtype, blob.size, blob.padding_bits].append(blob)
        self._offsets: dict[BlobKey, int] = {}
        self.end = aligned(foundation.size, blobfile.ALIGNMENT)

    def offset(self, tensor: LinkTensor) -> int:
        """Return where `tensor` is stored, placing it if its bytes are new."""
        self._know_alike(tensor.key)
        offset = self._offsets.get(tensor.key)
        if offset is None:
            offset = self._offsets[tensor.key] = self.end
            blob = MilBlob(
                offset=offset,
                dtype=tensor.key.dtype,
                data_offset=offset + blobfile.ALIGNMENT,
                size=tensor.key.size,
                padding_bits=tensor.key.padding_bits,
            )
            self.placed.append(_Placed(blob=blob, tensor=tensor))
            self.end = blob.next_offset
        return offset

    def _know_alike(self, key: BlobKey) -> None:
        """Hash the foundation's blobs of the form of `key`, once: a shift of zeros is the bias that a layer without one
        has, and few other tensors of adapters have a form that the base's have.
        """
        alike = self._alike.pop((key.dtype, key.size, key.padding_bits), ())
        if not alike:
            return
        start, end = self._foundation.start, self._foundation.start + self._foundation.size
        with blobfile.mapped(self._foundation.path) as buffer, memoryview(buffer) as view, view[start:end] as weights:
            for blob in alike:
                self._offsets.setdefault(blobfile.key_of(weights, blob), blob.offset)


def _relocate(message: MilFunction, function: Function, adapter: LinkAdapter | None, pool: _Pool) -> None:
    if adapter is None:
        return
    for target, place in function.slot_places:
        place.of(message).offset = pool.offset(adapter.tensors[target])
    for constant, place in function.embedded_places:
        tensor = LinkTensor(key=constant.key, read=partial(bytes, constant.data))
        place.of(message).offset = pool.offset(tensor)


def _identifier(foundation: PartitionFoundation, placed: Sequence[_Placed], model: bytes) -> str:
    """Return the package's identifier: a function of everything in it, without hashing the foundation again."""
    digest = hashlib.sha256(foundation.sha256.encode())
    for entry in placed:
        digest.update(entry.tensor.key.sha256.encode())
    digest.update(model)
    return f"executorch_{digest.hexdigest()[:32]}"


def _file_chunks(foundation: PartitionFoundation, *, skip: int) -> Iterator[bytes]:
    remaining = foundation.size - skip
    with foundation.path.open("rb") as file:
        file.seek(foundation.start + skip)
        while remaining > 0:
            chunk = file.read(min(_CHUNK, remaining))
            if not chunk:
                return
            remaining -= len(chunk)
            yield chunk
