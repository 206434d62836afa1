"""A directory flattened into one byte string, as ExecuTorch's CoreML delegate stores a model.

Format (ExecuTorch 1.5.1, runtime/inmemoryfs): the files' contents one after the other, then a JSON list of nodes with
its bytes reversed, so that a reader can parse it from the end. A node is a file (`kind` 0) with a data region, or a
directory (`kind` 1) with children by name; children come before their directory and the root is last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import attrs

from lora_core.intake.parsing import parsing
from lora_core.intake.plain_json import parse_json

_FILE, _DIRECTORY = 0, 1
_DEPTH = 32
_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f]{1,255}")


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
    with parsing(where, "The package inside the program"):
        text = tail[::-1].decode("latin-1")
        _, end = json.JSONDecoder().raw_decode(text)
        nodes = parse_json(text[:end])["nodes"]
        regions = _regions(nodes)
        ends = [(region.offset, region.offset + region.size, region.path) for region in regions]
        for (_, end, path), (start, _, after) in pairwise(sorted(ends)):
            if start < end:
                raise ValueError(f"{path!r} and {after!r} overlap")
        return regions


def trailer_size(tail: bytes) -> int:
    """Return how many of the last bytes of a flattened directory, which `read_regions` reads, are its trailer."""
    return json.JSONDecoder().raw_decode(tail[::-1].decode("latin-1"))[1]


def _regions(nodes: list[dict[str, Any]]) -> list[Region]:
    """Return the files of the tree whose root is the last node; every node is in it once."""
    found: list[Region] = []
    pending = [(len(nodes) - 1, "", 0)]
    seen: set[int] = set()
    while pending:
        index, prefix, depth = pending.pop(0)
        if index in seen or depth > _DEPTH:
            raise ValueError("its directories are no tree")
        seen.add(index)
        for name, child in nodes[index]["children"].items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"it has a file named {name!r}")
            node = nodes[_number(child)]
            if _number(node["kind"]) == _FILE:
                data = node["dataRegion"]
                region = Region(path=f"{prefix}{name}", offset=_number(data["offset"]), size=_number(data["size"]))
                found.append(region)
            else:
                pending.append((child, f"{prefix}{name}/", depth + 1))
    return found


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of a node or a byte")
    return value


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
