"""Does every stored byte belong to something that was told? The one place that answers, from the files themselves.

What a plugin reports is a claim. Two things hold it to the bytes: where it tells all parts of its files, nothing else
may be in them; and whatever it calls them, what is in no blob may not weigh as much as a base could.
"""

from __future__ import annotations

import mmap
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from lora_core.bundle.bundle import Artifact, Bundle
from lora_core.errors import Problem
from lora_core.sharing.blobs import Blob, FilePart

Spans: TypeAlias = Sequence[tuple[int, int]]
"""Where bytes begin and end, in a file."""

PADDING = 4096
"""Zeros that may stand between two things: no format aligns to more than a page."""
_REMEDY = "Export the bundle again."
# What is no tensor, compressed: a tiny graph, its tables; then a name and a place for each tensor that a method reads,
# and in a large program what grows with the base. A base in any form weighs eight times that: weights do not compress.
_GRAPH, _REFERENCE, _SHARE = 64 * 1024, 256, 8
_SMALL_TEXT = 16 << 20


def unaccounted_problems(bundle: Bundle, blobs: Iterable[Blob], parts: Iterable[FilePart] | None) -> Iterator[Problem]:
    """Yield a problem for bytes that are stored and in none of `blobs` and `parts`, and for tensors that nobody reads.

    `parts` is what `WeightSharing.parts` gave. Files whose size is not the manifest's are left to `size_problems`.
    """
    blobs = list(blobs)
    known = None if parts is None else [part for part in parts if _is_what_it_says(bundle, part)]
    stored, told = _spans(blobs), _spans(known or ())
    copies = _spans(part for part in known or () if part.copy_of is not None)
    texts = _text_files(bundle)
    room = _Room(bundle, blobs)
    for artifact in bundle.manifest.artifacts:
        path = bundle.file(artifact)
        if artifact.path in texts or not path.is_file() or path.stat().st_size != artifact.size or not artifact.size:
            continue
        mine = stored.get(artifact.path, [])
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if known is not None and (gap := _first_gap(data, [*mine, *told.get(artifact.path, [])])):
                what = f"{gap[1] - gap[0]} bytes of {artifact.path!r}, from byte {gap[0]} on, are in no tensor"
                yield Problem(what=f"{what} and no known part of it", where=str(path), remedy=_REMEDY)
            elif weight := _overweight(data, [*mine, *copies.get(artifact.path, [])], room.of(artifact)):
                what = f"{artifact.path!r} holds {weight} bytes (compressed) that are in no tensor"
                yield Problem(what=f"{what}: more than headers and a graph need", where=str(path), remedy=_REMEDY)
    yield from _unread(bundle, blobs)


def _is_what_it_says(bundle: Bundle, part: FilePart) -> bool:
    """Say whether a part that is a copy has the bytes that it is a copy of; others are what they are."""
    if part.copy_of is None:
        return True
    with bundle.file(part.file).open("rb") as one, bundle.file(part.copy_of[0]).open("rb") as other:
        one.seek(part.offset)
        other.seek(part.copy_of[1])
        left = part.size
        while left:
            piece = one.read(min(left, 1 << 20))
            if not piece or piece != other.read(len(piece)):
                return False
            left -= len(piece)
    return True


def _unread(bundle: Bundle, blobs: Iterable[Blob]) -> Iterator[Problem]:
    unread: dict[str, int] = defaultdict(int)
    for blob in blobs:
        if not blob.methods and blob.size:
            unread[blob.file] += blob.size
    for file, size in sorted(unread.items()):
        what = f"{size} bytes of tensors in {file!r} are read by no method"
        yield Problem(what=what, where=str(bundle.path / file), remedy=_REMEDY)


def _spans(pieces: Iterable[Blob | FilePart]) -> dict[str, list[tuple[int, int]]]:
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for each in pieces:
        spans[each.file].append((each.offset, each.offset + each.size))
    return spans


def _text_files(bundle: Bundle) -> frozenset[str]:
    """Return the files that the base or an adapter is prompted with: text, read by the core itself.

    Small ones need no use: exports keep what came beside a tokenizer.
    """
    manifest = bundle.manifest
    promptings = (manifest.prompting, *(adapter.prompting for adapter in manifest.adapters))
    # Bundles of schema 2 and older have text files and do not say what for.
    most = _SMALL_TEXT if manifest.prompting is not None else None
    texts = [each for each in manifest.artifacts if each.role == "tokenizer"]
    beside = [each.path for each in texts if most is None or each.size <= most]
    return frozenset((*beside, *(file for each in promptings if each is not None for file in each.files)))


def _gaps(size: int, spans: Spans) -> Iterator[tuple[int, int]]:
    end = 0
    for start, stop in sorted(spans):
        if start > end:
            yield end, start
        end = max(end, stop)
    if size > end:
        yield end, size


def _first_gap(data: mmap.mmap, spans: Spans) -> tuple[int, int] | None:
    """Return the first bytes in none of `spans` that are not zeros between two of them."""
    gaps = _gaps(len(data), spans)
    return next((gap for gap in gaps if gap[1] - gap[0] >= PADDING or any(data[gap[0] : gap[1]])), None)


def _overweight(data: mmap.mmap, blobs: Spans, room: int) -> int:
    """Return what is in none of `blobs` weighs, compressed, if that is more than `room`; else 0."""
    gaps = list(_gaps(len(data), blobs))
    if sum(stop - start for start, stop in gaps) <= room:
        return 0
    packer = zlib.compressobj(1)
    weight = sum(len(packer.compress(data[start:stop])) for start, stop in gaps) + len(packer.flush())
    return weight if weight > room else 0


class _Room:
    """How much of a file may be in no blob, compressed: of an adapter's file, and of one that all share."""

    def __init__(self, bundle: Bundle, blobs: Iterable[Blob]) -> None:
        owners: Mapping[str, str | None] = {method.name: method.adapter for method in bundle.manifest.methods}
        self._references: dict[str | None, int] = defaultdict(int)
        base = 0
        read: dict[frozenset[str], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for blob in blobs:
            methods = frozenset(blob.methods)
            times, size = read[methods]
            read[methods] = times + 1, size + blob.size
        for methods, (times, size) in read.items():
            readers = [owners.get(method) for method in methods]
            for owner in readers:
                self._references[owner] += times
            base += size if None in readers else 0
        self._all = sum(self._references.values())
        self._graph = _GRAPH + base // _SHARE

    def of(self, artifact: Artifact) -> int:
        references = self._all if artifact.adapter is None else self._references[artifact.adapter]
        return self._graph + _REFERENCE * references
