"""What a fuzz target is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

Read = Callable[[bytes], object]
WHERE = Path("file")
ALLOWED_ELSE = (ValueError,)
"""`parse_json` speaks of text and not of files; whoever calls it makes our error of this."""


@attrs.frozen(kw_only=True)
class Target:
    """A reader: `seeds` are honest; `read` raises our errors, or one of `allowed`, for what is not."""

    read: Read
    seeds: Sequence[bytes]
    allowed: tuple[type[Exception], ...] = ()


def from_file(read: Callable[[Path], object], folder: Path, name: str) -> Read:
    """Return `read` of bytes, which are put into the file `name` first."""

    def run(data: bytes) -> object:
        path = folder / name
        path.write_bytes(data)
        return read(path)

    return run


def safetensors(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a safetensors file."""
    from safetensors.numpy import save

    return bytes(save(dict(tensors), metadata=dict(metadata or {"format": "pt"})))
