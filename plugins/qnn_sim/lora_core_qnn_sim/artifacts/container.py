"""The container of every binary file: a canonical safetensors file that carries its own digest.

Format (version 1). An ordinary safetensors file, so any safetensors reader opens it. `__metadata__` holds, as strings:
`format` (`lora-core-qnn-sim`), `version`, `kind`, `detail` (canonical JSON) and `digest`: the SHA-256 hex of the whole
file with the 64 characters of the digest itself replaced by zeros. Tensor data begin at a multiple of 64 bytes and lie
without gaps, widest element first, so every tensor is aligned and can be memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.intake.files import open_regular
from lora_core.intake.limits import HEADER, TENSORS, raised
from lora_core.intake.parsing import UNREADABLE
from lora_core.intake.plain_json import parse_json
from lora_core_qnn_sim.errors import ContainerVersionError, DamagedContainerError

FORMAT = "lora-core-qnn-sim"
VERSION = "1"
_ALIGNMENT = 64
_NO_DIGEST = "0" * 64
_DTYPES: dict[str, np.dtype[Any]] = {
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Array = npt.NDArray[Any]


def dtype_name(array: Array) -> str:
    """Return the safetensors name of an array's type; KeyError for a type the container does not store."""
    return _NAMES[array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype]


@attrs.frozen(kw_only=True, eq=False)
class Container:
    """A container opened for reading: `tensors` are read-only views of the memory-mapped file.

    `offsets` says where each tensor's bytes begin in the file; `size` is the file's.
    """

    path: Path
    kind: str
    detail: Mapping[str, Any]
    digest: str
    tensors: Mapping[str, Array]
    offsets: Mapping[str, int]
    size: int

    @property
    def payload(self) -> int:
        """The bytes of all tensors."""
        return sum(array.nbytes for array in self.tensors.values())


def canonical_json(value: Any) -> str:
    """Return the one JSON text of plain data: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def write_container(path: Path, kind: str, detail: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    """Write a container and return its digest; the same inputs give the same bytes."""
    entries: dict[str, Any] = {}
    end = 0
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        array = tensors[name]
        entries[name] = {
            "dtype": dtype_name(array),
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    header = _header(kind, detail, entries)
    hasher = hashlib.sha256(header)
    for name in order:
        hasher.update(np.ascontiguousarray(tensors[name]).data)
    digest = hasher.hexdigest()
    with path.open("wb") as file:
        file.write(header.replace(_NO_DIGEST.encode(), digest.encode(), 1))
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).data)
    return digest


def _header(kind: str, detail: Mapping[str, Any], entries: Mapping[str, Any]) -> bytes:
    # The digest comes first in the header so that nothing in `detail` can be taken for it.
    metadata = {"digest": _NO_DIGEST, "format": FORMAT, "version": VERSION, "kind": kind}
    text = '{"__metadata__":' + json.dumps(metadata | {"detail": canonical_json(detail)}, separators=(",", ":"))
    if entries:
        text += "," + canonical_json(entries)[1:-1]
    text += "}"
    body = text.encode()
    body += b" " * (-(len(body) + 8) % _ALIGNMENT)
    return struct.pack("<Q", len(body)) + body


def read_container(path: Path, kind: str) -> Container:
    """Open a container of `kind`, memory-mapped, after checking every byte against its digest.

    Raises `DamagedContainerError` for anything that is not what was written, `ContainerVersionError` for another
    version of the format. No content of a damaged file is interpreted beyond its header.
    """
    try:
        with open_regular(path, DamagedContainerError, links=False) as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DamagedContainerError(f"Cannot read {path.name}: {error}", where=str(path)) from error
    header, start = _parse_header(path, view)
    metadata = header.pop("__metadata__", None)
    _check_metadata(path, view, start, metadata, kind)
    try:
        tensors, offsets = _tensors(header, view, start)
        detail = parse_json(metadata["detail"])
        if not isinstance(detail, dict):
            raise ValueError("its detail is no object")
    except UNREADABLE as error:
        raise _damaged(path, f"its header is not one this version wrote ({error})") from error
    return Container(
        path=path,
        kind=kind,
        detail=detail,
        digest=metadata["digest"],
        tensors=tensors,
        offsets=offsets,
        size=len(view),
    )


def header_size(path: Path) -> int:
    """Return the bytes before the tensors of a container that `read_container` opens."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _tensors(header: Mapping[str, Any], view: mmap.mmap, start: int) -> tuple[dict[str, Array], dict[str, int]]:
    """Return the tensors and where they begin; raises one of `UNREADABLE`."""
    if len(header) > raised(TENSORS):
        raise ValueError(f"it has {len(header)} tensors")
    tensors: dict[str, Array] = {}
    offsets: dict[str, int] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        if not 0 <= begin <= end <= len(view) - start:
            raise ValueError(f"{name!r} lies outside the file")
        array = np.frombuffer(view, dtype, (end - begin) // dtype.itemsize, start + begin)
        tensors[name] = array.reshape(entry["shape"])
        offsets[name] = start + begin
    return tensors, offsets


def _parse_header(path: Path, view: mmap.mmap) -> tuple[dict[str, Any], int]:
    if len(view) < 8:
        raise _damaged(path, "it is shorter than a header")
    (length,) = struct.unpack("<Q", view[:8])
    if length > min(len(view) - 8, raised(HEADER)):
        raise _damaged(path, "its header is longer than the file")
    try:
        header = parse_json(view[8 : 8 + length].decode("ascii"))
    except ValueError as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")
    return header, 8 + length


def _check_metadata(path: Path, view: mmap.mmap, start: int, metadata: Any, kind: str) -> None:
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _damaged(path, f"it is not a {FORMAT} file")
    if metadata.get("version") != VERSION:
        raise ContainerVersionError(
            f"{path.name} has version {metadata.get('version')!r} of the {FORMAT} format; this one reads {VERSION!r}",
            where=str(path),
            remedy="Base and sections must come from one version: export the bundle again.",
        )
    digest = metadata.get("digest")
    if not isinstance(digest, str) or len(digest) != len(_NO_DIGEST):
        raise _damaged(path, "it has no digest")
    hasher = hashlib.sha256(view[:start].replace(digest.encode("ascii", "replace"), _NO_DIGEST.encode(), 1))
    with memoryview(view) as whole:
        hasher.update(whole[start:])
    if hasher.hexdigest() != digest:
        raise _damaged(path, "its bytes do not have the digest it carries")
    if metadata.get("kind") != kind:
        raise _damaged(path, f"it is a {metadata.get('kind')!r}, not a {kind!r}")


def _damaged(path: Path, why: str) -> DamagedContainerError:
    return DamagedContainerError(f"{path.name} is damaged: {why}", where=str(path), remedy="Restore or re-export it.")
