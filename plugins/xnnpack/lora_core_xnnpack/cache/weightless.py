"""Lowered programs without the base's weights: taken from one base, filled with those of another."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from lora_core_xnnpack.cache.forms import Form, forms_by_digest, same_storage, stored
from lora_core_xnnpack.flat_tensor import DataBlob
from lora_core_xnnpack.link import Template, rewrite
from lora_core_xnnpack.named_blobs import Buffer, StoredBlob, TensorLayout, number, tables
from lora_core_xnnpack.relocations import KeySite, RelocationTable, TemplateSegment

if TYPE_CHECKING:
    import torch

_CONTENT_KEY = re.compile(r"(scale_)?[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class BaseTensor:
    """One blob of the foundation: where its bytes come from, and its key.

    `name` is the key if it is a name, `prefix` stands before a content key (then `name` is empty).
    """

    form: Form
    name: str
    prefix: str
    layout: TensorLayout | None

    def blob(self, module: torch.nn.Module) -> DataBlob:
        """Return the blob that a base in `module` stores here."""
        data = stored(module, self.form)
        digest = hashlib.sha256(data).hexdigest()
        return DataBlob(key=self.name or self.prefix + digest, data=data, digest=digest, layout=self.layout)


@attrs.frozen(kw_only=True)
class WeightlessProgram:
    """A program (or template) and where the keys of base tensors stand in it, by their index in the foundation."""

    template: Template
    sites: tuple[tuple[int, tuple[KeySite, ...]], ...]


@attrs.frozen(kw_only=True)
class Weightless:
    """The base program, the templates, and the foundation's blobs in stored order."""

    foundation: tuple[BaseTensor, ...]
    programs: tuple[WeightlessProgram, ...]


class DependsOnWeightsError(Exception):
    """A stored tensor cannot be traced to one tensor of the base; the text says which and why."""


def strip(
    module: torch.nn.Module, programs: Sequence[Template], data: Buffer, blobs: Sequence[StoredBlob]
) -> Weightless:
    """Trace every blob of a foundation file to a tensor of `module`, and find its key in every program.

    Raises `DependsOnWeightsError` if a blob is no stored form of a tensor, or of several that are equal by chance.
    """
    known = forms_by_digest(module)
    keys = [blob.key for blob in blobs]
    # What kernels read by name is not delegated: a delegated tensor that equals it (a tied head) is the other one.
    delegated = {digest: [form for form in found if form.path not in keys] or found for digest, found in known.items()}
    foundation = tuple(
        _trace(module, blob, data, delegated if _CONTENT_KEY.fullmatch(blob.key) else known) for blob in blobs
    )
    return Weightless(
        foundation=foundation,
        programs=tuple(WeightlessProgram(template=program, sites=_sites(program, keys)) for program in programs),
    )


def fill(weightless: Weightless, module: torch.nn.Module) -> tuple[list[DataBlob], list[Template]]:
    """Return the foundation's blobs and the programs that lowering `module` would have given."""
    blobs = [tensor.blob(module) for tensor in weightless.foundation]
    distinct = list({blob.key: blob for blob in blobs}.values())
    return distinct, [_fill(program, blobs) for program in weightless.programs]


def _trace(module: torch.nn.Module, blob: StoredBlob, data: Buffer, known: dict[str, list[Form]]) -> BaseTensor:
    digest = hashlib.sha256(memoryview(data)[blob.offset : blob.offset + blob.size]).hexdigest()
    candidates = known.get(digest, [])
    content = _CONTENT_KEY.fullmatch(blob.key)
    if not content:
        candidates = [form for form in candidates if form.path == blob.key] or candidates
    if not candidates:
        raise DependsOnWeightsError(f"{blob.key} is no stored form of a weight")
    first = candidates[0]
    if any(not same_storage(module, first, other) for other in candidates[1:]):
        paths = ", ".join(sorted({form.path for form in candidates}))
        raise DependsOnWeightsError(f"these weights are equal, so they cannot be told apart: {paths}")
    prefix = content.group(1) or "" if content else ""
    return BaseTensor(form=first, name="" if content else blob.key, prefix=prefix, layout=blob.layout)


def _sites(program: Template, keys: Sequence[str]) -> tuple[tuple[int, tuple[KeySite, ...]], ...]:
    found = []
    for index, key in enumerate(keys):
        sites = tuple(_find(program, key)) if _CONTENT_KEY.fullmatch(key) else ()
        if sites:
            found.append((index, sites))
    return tuple(found)


def _find(program: Template, key: str) -> list[KeySite]:
    # As a whole flatbuffer string: the content key of a tensor could also stand behind `scale_`.
    needle = len(key).to_bytes(4, "little") + key.encode("ascii") + b"\0"
    sites = []
    for segment in sorted({reference.segment for reference in program.table.delegates}):
        payload = program.segment(segment)
        position = payload.find(needle)
        while position >= 0:
            sites.append(KeySite(segment=segment, offset=position + 4))
            position = payload.find(needle, position + 1)
    return sites


def _fill(program: WeightlessProgram, blobs: Sequence[DataBlob]) -> Template:
    old = program.template
    rewritten = b"".join(rewrite(old, [(sites, blobs[index].key) for index, sites in program.sites]))
    sizes = {4 * rows * columns for rows, columns in (tensor.shape for tensor in old.table.tensors)}
    keys = tuple(sorted({blob.key for blob in blobs if len(blob.data) in sizes}))
    return Template(program=rewritten, table=attrs.evolve(_retabled(old.table, rewritten), foundation_keys=keys))


def _retabled(old: RelocationTable, program: bytes) -> RelocationTable:
    """Return the table of a rewritten program: equal payloads may have come to share a segment."""
    size, base = struct.unpack_from("<QQ", program, 16)
    root = struct.unpack_from("<I", program)[0]
    start = size - old.tail_size
    tail = program[start:size]
    delegates = tuple(
        attrs.evolve(each, segment=struct.unpack_from("<I", tail, each.position)[0]) for each in old.delegates
    )
    moved = {before.segment: after.segment for before, after in zip(old.delegates, delegates, strict=True)}
    spans = [(number(program, span, 0, "<Q"), number(program, span, 1, "<Q")) for span in tables(program, root, 4)]
    return attrs.evolve(
        old,
        tail_offset=start,
        tail=attrs.evolve(old.tail, data=tail),
        segments=tuple(TemplateSegment(offset=base + offset, size=length) for offset, length in spans),
        delegates=delegates,
        tensors=tuple(attrs.evolve(tensor, sites=_moved(tensor.sites, moved)) for tensor in old.tensors),
    )


def _moved(sites: Sequence[KeySite], moved: Mapping[int, int]) -> tuple[KeySite, ...]:
    places = sorted({(moved[site.segment], site.offset) for site in sites})
    return tuple(KeySite(segment=segment, offset=offset) for segment, offset in places)
