"""Constants of a lowered function: what each of its references into the blob file stands for."""

from __future__ import annotations

from collections.abc import Callable
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


@attrs.frozen(kw_only=True)
class Constant:
    """What one reference stands for: `read` gives the bytes that `key` identifies.

    `slot` is the part whose sentinel it is, None for a constant of the base or of a LoRA layer.
    """

    name: str
    key: BlobKey
    read: Callable[[], Buffer]
    slot: SlotPart | None = None


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
                read = partial(_region, weights, blob.data_offset, blob.size)
                constants.append(Constant(name=name, key=key, read=read, slot=sentinels.get(key)))
    return LoweredPackage(model=model, constants=tuple(constants))


def _region(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
