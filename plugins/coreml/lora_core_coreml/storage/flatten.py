"""A directory flattened into one byte string, as ExecuTorch's CoreML delegate stores a model.

Format (ExecuTorch 1.5.1, runtime/inmemoryfs): the files' contents one after the other, then a JSON list of nodes with
its bytes reversed, so that a reader can parse it from the end. A node is a file (`kind` 0) with a data region, or a
directory (`kind` 1) with children by name; children come before their directory and the root is last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs

from lora_core.errors import BundleError

_FILE, _DIRECTORY = 0, 1


@attrs.frozen(kw_only=True)
class Region:
    """Where one file lies in the flattened bytes."""

    path: str
    offset: int
    size: int


def trailer(root: str, regions: Sequence[Region]) -> bytes:
    """Return the bytes that end a flattened directory called `root` whose files lie at `regions`."""
    nodes: list[dict[str, Any]] = []
    tree: dict[str, Any] = {}
    for region in regions:
        nodes.append(_node(region.path.rsplit("/", 1)[-1], _FILE, offset=region.offset, size=region.size))
        *parents, name = region.path.split("/")
        folder = tree
        for parent in parents:
            folder = folder.setdefault(parent, {})
        folder[name] = len(nodes) - 1
    _add_directory(root, tree, nodes)
    return json.dumps({"nodes": nodes}, separators=(",", ":")).encode()[::-1]


def read_regions(tail: bytes, *, where: str) -> list[Region]:
    """Read the files' regions from the last bytes of a flattened directory; raises `BundleError`.

    `tail` must hold the whole JSON; it may begin anywhere before it.
    """
    try:
        index, _ = json.JSONDecoder().raw_decode(tail[::-1].decode("latin-1"))
        nodes = index["nodes"]
        return list(_walk(nodes, len(nodes) - 1, ""))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BundleError(f"The package inside the program is damaged: {error}", where=where) from error


def _walk(nodes: list[dict[str, Any]], index: int, prefix: str) -> list[Region]:
    found: list[Region] = []
    for name, child in nodes[index]["children"].items():
        node = nodes[child]
        if node["kind"] == _FILE:
            data = node["dataRegion"]
            found.append(Region(path=f"{prefix}{name}", offset=data["offset"], size=data["size"]))
        else:
            found.extend(_walk(nodes, child, f"{prefix}{name}/"))
    return found


def _add_directory(name: str, tree: dict[str, Any], nodes: list[dict[str, Any]]) -> int:
    children = {
        child: (_add_directory(child, entry, nodes) if isinstance(entry, dict) else entry)
        for child, entry in sorted(tree.items())
    }
    nodes.append(_node(name, _DIRECTORY, children=children))
    return len(nodes) - 1


def _node(
    name: str, kind: int, *, offset: int = 0, size: int = 0, children: dict[str, int] | None = None
) -> dict[str, Any]:
    return {"children": children or {}, "dataRegion": {"offset": offset, "size": size}, "kind": kind, "name": name}
