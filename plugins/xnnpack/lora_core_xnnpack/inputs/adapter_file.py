"""An adapter as a data file: A and B of every slot, mapped when it is opened.

It is a FlatTensor file as ExecuTorch's own serializer writes it. Tensors are named as ExecuTorch's adapters for forward
arguments are (`lora_core.adapters.slots.input_names`), float32, filled up to the ranks of the slot plan, equal ones
stored once; B has the scaling in it. Behind them stands the mark of the foundation that they are for.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.input_names import input_key, slots_of
from lora_core.adapters.slots.kinds import FLOAT32_SIZE, Values
from lora_core.errors import BundleError
from lora_core.intake.files import open_regular
from lora_core.intake.parsing import parsing
from lora_core_xnnpack.files.data_file import DataBlob, serialize, stored_blobs
from lora_core_xnnpack.files.marks import ADAPTER_MARK, marked
from lora_core_xnnpack.files.named_blobs import NamedBlob, TensorLayout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_FLOAT = 6
"""`ScalarType` of scalar_type.fbs."""
_MOST_READ_BEHIND = 64
"""Bytes behind a tensor that XNNPACK's kernels may read: there must be as many in the file, or none of its pages."""


def write_adapter(path: Path, placed: PlacedAdapter, mark: str) -> str:
    """Write the file of an adapter for the foundation with `mark`; return the SHA-256 of the file."""
    parts = serialize([*_tensors(placed), marked(ADAPTER_MARK, mark)])  # last: `_MOST_READ_BEHIND`
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def _tensors(placed: PlacedAdapter) -> Iterator[DataBlob]:
    for slot, parts in placed.values():
        for part, array in parts.items():
            data = array.astype("<f4", copy=False).data.cast("B")
            layout = TensorLayout(scalar_type=_FLOAT, sizes=array.shape, dim_order=(0, 1))
            digest = hashlib.sha256(data).hexdigest()
            yield DataBlob(key=input_key(slot.module, part), data=data, digest=digest, layout=layout)


def read_adapter(path: Path, mark: str | None) -> Mapping[str, Values]:
    """Return A and B of every slot by module, mapped from the file at `path`, which is for the foundation with `mark`
    (None: for any).

    They are mapped so that writing to them would change no file. Raises `BundleError` for a file that is damaged, or
    was made for another base.
    """
    data = _mapped(path)
    blobs = {blob.key: blob for blob in stored_blobs(data, path)}
    marks = blobs.pop(ADAPTER_MARK, None)
    found = b"" if marks is None else data[marks.offset : marks.offset + marks.size]
    if mark is not None and found != mark.encode("ascii"):
        raise BundleError(
            f"{path.name} was made for another base",
            where=str(path),
            remedy="Remove the adapter and add it again from its source.",
        )
    with parsing(path):
        return slots_of((key, _matrix(data, blob)) for key, blob in blobs.items())


def _mapped(path: Path) -> mmap.mmap:
    with open_regular(path, BundleError, links=False) as file, parsing(path):
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _matrix(data: mmap.mmap, blob: NamedBlob) -> npt.NDArray[np.float32]:
    import numpy as np

    layout = blob.layout
    if layout is None or layout.scalar_type != _FLOAT or layout.dim_order != (0, 1) or len(layout.sizes) != len((0, 1)):
        raise ValueError(f"{blob.key} is no matrix of float32 that is stored row by row")
    if min(layout.sizes) < 1 or FLOAT32_SIZE * math.prod(layout.sizes) != blob.size or blob.offset % FLOAT32_SIZE:
        raise ValueError(f"a matrix of shape {layout.sizes} has {blob.size} bytes")
    found = np.frombuffer(data, "<f4", count=blob.size // FLOAT32_SIZE, offset=blob.offset).reshape(layout.sizes)
    return found if blob.offset + blob.size + _MOST_READ_BEHIND <= len(data) else found.copy()
