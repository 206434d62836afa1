# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""A lowering of a few layers, taken apart."""

from __future__ import annotations

import hashlib
import itertools
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
from executorch.exir.schema import Program

from lora_core.models.base import BaseModel
from lora_core.models.injection import eject, wrapped_layers
from lora_core.pte import SEGMENT_ALIGNMENT
from lora_core_xnnpack.adapter_dtype import StoredParts
from lora_core_xnnpack.cache.origins import BaseTensor, DependsOnWeightsError, is_content_key, trace_foundation
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.named_blobs import NamedBlob
from lora_core_xnnpack.lowering.known import KnownBytes, KnownTensors
from lora_core_xnnpack.lowering.lowering import FOUNDATION_TAG, LORA_TAG, EdgeMethods, Lowered, delegated, to_edge
from lora_core_xnnpack.lowering.shortening import bare, shortened
from lora_core_xnnpack.slot_tensors import tensor_blob
from lora_core_xnnpack.stamping import image, planning
from lora_core_xnnpack.stamping.elements import Element, Lists, NotStampableError, join_numbers, split_numbers
from lora_core_xnnpack.stamping.keys import BaseKey, SlotKey, StoredKey, mask, unmask
from lora_core_xnnpack.stamping.shallow import paths_in_cut, with_layers

FOUNDATION, SLOTS = "foundation", "slots' tensors"


@attrs.frozen(kw_only=True)
class Sample:
    """A lowered program as `lists`, and the program itself for what is in no list."""

    program: Program
    lists: Lists


@attrs.frozen(kw_only=True)
class Traced:
    """Methods of a model of few layers with weights of no meaning, traced and not yet delegated.

    `placeholders` are the values in the slots of each plan, by path and part. The model is as before injection, so that
    tensors have the paths that they have in the base. `wrapped` has for each layer with slots where the one method that
    was traced has the layer itself; None where nodes still tell of other layers.
    """

    model: BaseModel
    edge: EdgeMethods
    placeholders: Sequence[Mapping[str, StoredParts]]
    wrapped: Mapping[str, str] | None

    @classmethod
    def of(
        cls,
        methods: Mapping[str, torch.nn.Module],
        model: BaseModel,
        placeholders: Sequence[Mapping[str, StoredParts]],
        *,
        takes_slots: bool = False,
    ) -> Traced:
        """Trace `methods`, and take out what was injected into them.

        With `takes_slots` they take it as inputs, and there are no `placeholders`.
        """
        edge = to_edge(methods, model, takes_slots=takes_slots)
        wrapped = {path: inner for module in methods.values() for path, inner, _ in wrapped_layers(module)}
        for module in methods.values():
            eject(module)
        return cls(model=model, edge=edge, placeholders=placeholders, wrapped=wrapped)

    def shortened(self, blocks: str, keep: Sequence[int]) -> Traced | None:
        """Return the same of the layers `keep` of those at the path `blocks`; None if they cannot be cut out."""
        edge = shortened(self.edge, blocks, keep)
        if edge is None:
            return None
        model = with_layers(self.model, blocks, keep)
        placeholders = [
            {mine: parts for path, parts in values.items() for mine in paths_in_cut(path, blocks, keep)}
            for values in self.placeholders
        ]
        return Traced(model=model, edge=edge, placeholders=placeholders, wrapped=None)

    def bare(self) -> Traced | None:
        """Return the same of the base alone; None if the slots cannot be cut out, as where layers have been."""
        edge = None if self.wrapped is None else bare(self.edge, self.wrapped)
        return None if edge is None else attrs.evolve(self, edge=edge, placeholders=(), wrapped={})

    def sample(self, weights: KnownTensors | None = None) -> Sample:
        """Lower the methods and take the result apart; the trace is of no use afterwards.

        `weights` are those of the model, where they are held for several samples.

        Raises `NotStampableError`, also if the program put together again is another.
        """
        lowered = delegated(self.edge, weights)
        emitted = lowered.manager._emitter_output
        if emitted.mutable_data is not None or (lowered.manager._named_data and lowered.manager._named_data.pte_data):
            raise NotStampableError("the program holds data of its own")
        tensors, known = _base_keys(lowered, self.model.module, weights)
        known |= _slot_keys(self.placeholders)
        methods = lowered.manager._execution_programs
        requests = {
            name: planning.requests(program.graph_module, program.graph_signature, shared=len(methods) > 1)
            for name, program in methods.items()
        }
        found = dict(image.lists(emitted.program, requests, known))
        found[FOUNDATION] = tuple(map(_foundation_element, tensors))
        filling = [known[key] for key in _slot_order(lowered)] or _slots_taken(lowered)
        found[SLOTS] = tuple(map(_key_element, filling))
        sample = Sample(program=emitted.program, lists=found)
        texts = {key: text for text, key in known.items()}
        if serialize(image.program(sample.program, sample.lists, texts.__getitem__)) != lowered.pte:
            raise NotStampableError("the lowered program is not put together as it was taken apart")
        return sample


def serialize(program: Program) -> bytes:
    """Return the program file."""
    return bytes(serialize_pte_binary(PTEFile(program=program), extract_delegate_segments=True))


def foundation_of(lists: Lists) -> tuple[BaseTensor, ...]:
    """Return the foundation's blobs in stored order."""
    return tuple(_foundation(element) for element in lists[FOUNDATION])


def slots_of(lists: Lists) -> tuple[SlotKey, ...]:
    """Return the tensors that fill slots in stored order, or in that in which methods take them."""
    keys = []
    for element in lists[SLOTS]:
        assert isinstance(element.kind, SlotKey)
        keys.append(unmask(element.kind, element.numbers))
    return tuple(keys)


def _base_keys(
    lowered: Lowered, module: torch.nn.Module, weights: KnownTensors | None
) -> tuple[tuple[BaseTensor, ...], dict[str, StoredKey]]:
    blobs, digests = _stored(lowered)
    try:
        tensors = trace_foundation(module, blobs, digests, weights)
    except DependsOnWeightsError as error:
        raise NotStampableError(str(error)) from error
    known: dict[str, StoredKey] = {
        blob.key: key_of(tensor) for blob, tensor in zip(blobs, tensors, strict=True) if is_content_key(blob.key)
    }
    if len(set(known.values())) != len(known):
        raise NotStampableError("a tensor of the base is stored twice")
    return tensors, known


def _stored(lowered: Lowered) -> tuple[list[NamedBlob], list[str]]:
    """Return what the foundation file would hold, with the SHA-256 of each; it is as large as the weights, so it is not
    put together.
    """
    file = lowered.manager._tensor_data[FOUNDATION_TAG]
    tables, *segments = file._buffers
    with mmap.mmap(-1, len(file)) as empty:  # pages that nobody writes take no memory
        empty.write(tables)
        blobs = stored_blobs(empty, Path(FOUNDATION_TAG))
    starts = itertools.accumulate(map(len, segments), initial=len(tables))
    placed = dict(zip(starts, segments, strict=False))
    return blobs, [_sha256(placed[blob.offset]) for blob in blobs]


def _sha256(data: bytes | KnownBytes) -> str:
    return str((data.hash if isinstance(data, KnownBytes) else hashlib.sha256(data)).hexdigest())


def key_of(tensor: BaseTensor) -> BaseKey:
    """Return the content key of a blob of the foundation."""
    return BaseKey(form=tensor.form, prefix=tensor.prefix)


def _slot_keys(placeholders: Sequence[Mapping[str, StoredParts]]) -> dict[str, StoredKey]:
    return {
        tensor_blob(array, part).key: SlotKey(plan=number, path=path, part=part)
        for number, values in enumerate(placeholders)
        for path, parts in values.items()
        for part, array in parts.items()
    }


def _slots_taken(lowered: Lowered) -> list[StoredKey]:
    """Return what methods take of slots, one plan after the other."""
    taken = (inputs for inputs in lowered.slot_inputs.values() if inputs)
    return [SlotKey(plan=number, path=path, part=part) for number, each in enumerate(taken) for path, part in each]


def _slot_order(lowered: Lowered) -> tuple[str, ...]:
    store: Any = lowered.manager._named_data
    entries = store.external_data.get(LORA_TAG, {}) if store else {}
    if any(SEGMENT_ALIGNMENT % entry.alignment for entry in entries.values()):
        raise NotStampableError("ExecuTorch asks for LoRA data at another alignment than that of its segments")
    if any(LORA_TAG in tags for tags in [lowered.manager._emitter_output.external_constant_map or {}]):
        raise NotStampableError("a slot's tensor is read by a portable kernel")
    return tuple(entries)


def _key_element(key: StoredKey) -> Element:
    masked, numbers = mask(key)
    return Element(kind=masked, numbers=numbers)


def _foundation_element(tensor: BaseTensor) -> Element:
    path, numbers = split_numbers(tensor.form.path)
    name, others = split_numbers(tensor.name)
    kind = attrs.evolve(tensor, form=attrs.evolve(tensor.form, path=path), name=name)
    return Element(kind=kind, numbers=(*numbers, *others))


def _foundation(element: Element) -> BaseTensor:
    kind = element.kind
    assert isinstance(kind, BaseTensor)
    count = kind.form.path.count("#")
    path = join_numbers(kind.form.path, element.numbers[:count])
    name = join_numbers(kind.name, element.numbers[count:])
    return attrs.evolve(kind, form=attrs.evolve(kind.form, path=path), name=name)
