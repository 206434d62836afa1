"""Constants of a lowered function: what each of its references into the blob file stands for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs

from lora_core.pte import Buffer
from lora_core_coreml.lowering.sentinels import Sentinels
from lora_core_coreml.program.object import SlotPart
from lora_core_coreml.storage import blobfile, mil, package
from lora_core_coreml.storage.blobfile import BlobKey
from lora_core_coreml.storage.messages import MilFunction, MilModel

_MAIN = "main"
_PIECE = 1 << 20


@attrs.define(kw_only=True, eq=False)
class ConstantData:
    """`size` bytes that one or more references stand for, given piece by piece: they are never needed together.

    What identifies them is known once they were read; `read_key` is what was found before.
    """

    dtype: int
    size: int
    padding_bits: int
    pieces: Callable[[], Iterator[Buffer]]
    read_key: BlobKey | None = None

    @property
    def key(self) -> BlobKey:
        """What identifies the bytes, which are read for it unless they were before."""
        if self.read_key is None:
            for _ in self.read():
                pass
        assert self.read_key is not None, "all was read"
        return self.read_key

    def read(self) -> Iterator[Buffer]:
        """Yield the bytes; the key is known after the last of them."""
        digest, done = hashlib.sha256(), 0
        for piece in self.pieces():
            digest.update(piece)
            done += len(piece)
            yield piece
        assert done == self.size, "a tensor has the size of its stand-in"
        self.read_key = BlobKey(
            dtype=self.dtype, size=self.size, padding_bits=self.padding_bits, sha256=digest.hexdigest()
        )


@attrs.frozen(kw_only=True)
class Constant:
    """What one reference stands for.

    `slot` is the part whose sentinel it is, None for a constant of the base or of a LoRA layer.
    """

    name: str
    data: ConstantData
    slot: SlotPart | None = None

    @property
    def key(self) -> BlobKey:
        """What identifies its bytes."""
        return self.data.key

    def read(self) -> bytes:
        """Return all of its bytes."""
        return b"".join(self.data.pieces())


@attrs.frozen(kw_only=True)
class LoweredPackage:
    """One partition's CoreML package: its model, and the constant of each reference in the order of
    `mil.blob_references`, whose offsets mean nothing any more.
    """

    model: MilModel
    constants: tuple[Constant, ...]

    @property
    def function(self) -> MilFunction:
        """The only function of the package."""
        return self.model.mlProgram.functions[_MAIN]


def read_package(root: Path, sentinels: Sentinels) -> LoweredPackage:
    """Read the package unpacked at `root`; its blob file must stay while constants are read."""
    model = mil.parse_model((root / package.MODEL).read_bytes())
    weights = root / package.WEIGHTS
    references = list(mil.blob_references(model.mlProgram.functions[_MAIN]))
    constants = []
    if references:
        with blobfile.mapped(weights) as buffer:
            for name, value in references:
                blob = blobfile.blob_at(buffer, value.offset, where=str(weights))
                key = blobfile.key_of(buffer, blob)
                data = ConstantData(
                    dtype=key.dtype,
                    size=key.size,
                    padding_bits=key.padding_bits,
                    pieces=partial(_region, weights, blob.data_offset, blob.size),
                    read_key=key,
                )
                constants.append(Constant(name=name, data=data, slot=sentinels.get(key)))
    return LoweredPackage(model=model, constants=tuple(constants))


def _region(path: Path, offset: int, size: int) -> Iterator[Buffer]:
    with path.open("rb") as file:
        file.seek(offset)
        while size > 0 and (piece := file.read(min(_PIECE, size))):
            size -= len(piece)
            yield piece
