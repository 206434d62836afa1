"""The LoRA matrices of a lowered program and where their keys stand, as both layouts' relocation tables say it.

ExecuTorch 1.5.1 stores an XNNPACK constant under the SHA-256 hex of its bytes (`backends/xnnpack/operators/
node_visitor.py`); the delegate's payload holds that key as 64 plain characters. Replacing the keys of the template's
placeholder tensors by those of an adapter's tensors gives the program of that adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs

from lora_core.errors import BundleError

KEY_LENGTH = 64
Table = TypeVar("Table")


@attrs.frozen(kw_only=True)
class KeySite:
    """Where a key stands: `offset` in a delegate's payload; each layout says how it counts payloads."""

    payload: int
    offset: int


@attrs.frozen(kw_only=True)
class TensorRelocation:
    """One LoRA matrix: float32, row-major, `shape` (rank, in_features) for A, (out_features, rank) for B."""

    module: str
    matrix: Literal["a", "b"]
    shape: tuple[int, int]
    sites: tuple[KeySite, ...]

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> TensorRelocation:
        """Read what `attrs.asdict` gave."""
        rows, columns = document["shape"]
        sites = tuple(KeySite(**site) for site in document["sites"])
        return cls(module=document["module"], matrix=document["matrix"], shape=(rows, columns), sites=sites)


def occurrences(payload: bytes, text: bytes) -> Iterator[int]:
    """Yield every offset at which `text` stands in `payload`."""
    position = payload.find(text)
    while position >= 0:
        yield position
        position = payload.find(text, position + 1)


def read_table(path: Path, schema_version: int, build: Callable[[dict[str, Any]], Table]) -> Table:
    """Read the relocation table at `path` with `build`.

    Raises `BundleError` naming the file if it is of a newer schema, is no table, or `build` refuses its content.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["schema_version"] > schema_version:
            raise BundleError(
                f"Relocation table {path.name} has schema {document['schema_version']}; this version reads up to "
                f"{schema_version}.",
                where=str(path),
                remedy="Update lora-core-xnnpack.",
            )
        return build(document)
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise BundleError(
            f"Relocation table {path.name} is damaged: {type(error).__name__}: {error}.",
            where=str(path),
            remedy="Export the bundle again.",
        ) from error
