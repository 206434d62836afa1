"""Write a FlatTensor data file segment by segment, in any order, without holding what is written.

The file's front names every blob by the hash of its bytes, so it is written last; its size is known before, and so is
where each segment belongs. Two segments can turn out to be equal, which ExecuTorch stores once: then those behind are
moved up. The bytes are those of `data_file.serialize`, which holds everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import BinaryIO

import attrs

from lora_core.pte import Buffer, segment_offsets
from lora_core_xnnpack.files.data_file import DataBlob, front
from lora_core_xnnpack.files.named_blobs import NamedBlob, TensorLayout

_DIGEST_LENGTH = 64
_MOVED = 1 << 22  # bytes that are moved at a time


@attrs.frozen(kw_only=True)
class PlannedBlob:
    """A blob to be written: `segment` is the index of its bytes.

    `name` is the key if it is a name, `prefix` stands before a content key (then `name` is empty).
    """

    segment: int
    name: str
    prefix: str
    layout: TensorLayout | None

    def as_data(self, digest: str) -> DataBlob:
        """Return the blob without its bytes, whose SHA-256 is `digest`."""
        return DataBlob(key=self.name or self.prefix + digest, data=b"", digest=digest, layout=self.layout)


@attrs.define(kw_only=True)
class _Segment:
    offset: int
    size: int
    hash: hashlib._Hash = attrs.field(factory=hashlib.sha256)
    done: int = 0


class DataWriter:
    """A data file being written: `write` gives segments their bytes, `finish` gives the file its front."""

    def __init__(self, file: BinaryIO, blobs: Sequence[PlannedBlob], sizes: Sequence[int]) -> None:
        """Write to `file`, empty and open for reading and writing, `blobs` in stored order.

        `sizes` are the bytes of the segments, in the order in which the blobs first name them.
        """
        self._file = file
        self._blobs = blobs
        # Keys of one length, all different: what front the file gets if no segments are equal.
        digests = [f"{index:0{_DIGEST_LENGTH}x}" for index in range(len(sizes))]
        base = len(self._front(digests, {digest: index for index, digest in enumerate(digests)}, sizes))
        self._segments = [
            _Segment(offset=base + offset, size=size)
            for offset, size in zip(segment_offsets(sizes), sizes, strict=True)
        ]

    def write(self, segment: int, data: Buffer) -> None:
        """Append `data` to a segment."""
        target = self._segments[segment]
        self._file.seek(target.offset + target.done)
        self._file.write(data)
        target.hash.update(data)
        target.done += len(data)

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of what was written so far of each blob that has any, by its key."""
        known = [(blob, self._segments[blob.segment]) for blob in self._blobs]
        blobs = [(blob, segment.hash.hexdigest()) for blob, segment in known if segment.done]
        return {blob.as_data(digest).key: digest for blob, digest in blobs}

    def finish(self) -> tuple[NamedBlob, ...]:
        """Write the front and return the blobs as they lie in the file, in the order in which they were planned.

        Raises `ValueError` if a segment did not get as many bytes as were planned.
        """
        wrong = [f"{each.done} of {each.size}" for each in self._segments if each.done != each.size]
        if wrong:
            raise ValueError(f"{len(wrong)} segments are not whole: {', '.join(wrong[:3])} bytes")
        digests = [each.hash.hexdigest() for each in self._segments]
        stored = list({digest: index for index, digest in reversed(list(enumerate(digests)))}.values())
        stored.sort()
        placed = {digests[index]: position for position, index in enumerate(stored)}
        sizes = [self._segments[index].size for index in stored]
        head = self._front(digests, placed, sizes)
        offsets = [len(head) + offset for offset in segment_offsets(sizes)]
        self._move([self._segments[index] for index in stored], offsets, len(head))
        self._file.seek(0)
        self._file.write(head)
        return tuple(
            NamedBlob(
                key=blob.as_data(digests[blob.segment]).key,
                offset=offsets[placed[digests[blob.segment]]],
                size=self._segments[blob.segment].size,
                layout=blob.layout,
            )
            for blob in self._blobs
        )

    def _front(self, digests: Sequence[str], placed: dict[str, int], sizes: Sequence[int]) -> bytes:
        distinct: dict[str, DataBlob] = {}
        for blob in self._blobs:
            data = blob.as_data(digests[blob.segment])
            distinct.setdefault(data.key, data)
        return front(list(distinct.values()), placed, sizes)

    def _move(self, segments: Sequence[_Segment], offsets: Sequence[int], end: int) -> None:
        """Move the segments to `offsets`, none of which is behind the present one; the gaps get zeros."""
        if [segment.offset for segment in segments] == offsets:
            return
        for segment, offset in zip(segments, offsets, strict=True):
            self._file.seek(end)
            self._file.write(bytes(offset - end))
            for done in range(0, segment.size, _MOVED):
                self._file.seek(segment.offset + done)
                part = self._file.read(min(_MOVED, segment.size - done))
                self._file.seek(offset + done)
                self._file.write(part)
            end = offset + segment.size
        self._file.truncate(end)
