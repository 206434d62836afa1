"""A template's program written anew, with other keys where tensors are named: no torch, no ExecuTorch.

The result equals what a full lowering with the tensors under those keys would have written, byte for byte, also where
tensors are equal: ExecuTorch stores equal data once (`exir/_serialize/_named_data_store.py`) and equal delegate
payloads once (`_extract_delegate_segments`), and so does this.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import attrs

from lora_core.pte import Buffer
from lora_core_xnnpack.files.data_file import DataBlob
from lora_core_xnnpack.files.program_front import assemble
from lora_core_xnnpack.slot_tensors import KeySite
from lora_core_xnnpack.split.relocations import SplitTemplate

KeyChange = tuple[Iterable[KeySite], str]


def rewrite(
    template: SplitTemplate,
    changes: Iterable[KeyChange],
    embedded: Sequence[DataBlob] = (),
    inside: Iterable[tuple[KeySite, Buffer]] = (),
) -> list[Buffer]:
    """Return the template's program with other keys at the given sites, with `embedded` as its named data, and with the
    bytes `inside` in place of others outside of delegates.

    Delegate payloads that have become equal are stored once, as ExecuTorch does.
    """
    table = template.table
    referenced = {reference.segment for reference in table.delegates}
    payloads = {index: bytearray(template.segment(index)) for index in referenced}
    for sites, key in changes:
        encoded = key.encode("ascii")
        for site in sites:
            payloads[site.payload][site.offset : site.offset + len(encoded)] = encoded
    kept = {index: bytearray(template.segment(index)) for index in template.kept}
    for site, data in inside:
        kept[site.payload][site.offset : site.offset + len(data)] = data
    segments: list[Buffer] = [bytes(segment) for segment in kept.values()]
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
