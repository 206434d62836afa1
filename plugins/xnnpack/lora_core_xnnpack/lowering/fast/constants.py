"""Hold constants once, however often ExecuTorch copies them."""

from __future__ import annotations

import ctypes
import hashlib
from types import SimpleNamespace
from typing import Any

from lora_core_xnnpack.lowering.fast.patching import Patches

_LARGE = 1 << 12
"""Bytes from which on it is worth it."""


def share_constants(patches: Patches) -> None:
    """Give equal large constants one copy, and hash that once.

    ExecuTorch 1.5.1 copies a constant that is delegated twice (`backends/xnnpack/operators/node_visitor.py`) and one
    that a kernel reads once more (`exir/emit/_emitter.py`), and an embedding with a tied head is both: the largest
    tensor of most models. All of it is kept until the program is written. Drop when it reads constants where they are.
    """
    from executorch.backends.xnnpack.operators import node_visitor
    from executorch.exir.emit import _emitter

    copies = _Copies()
    patches.undo(copies.forget)
    hashing = SimpleNamespace(sha256=copies.sha256)
    for module in (node_visitor, _emitter):
        patches.add(module, "bytes", copies.copy)
        patches.replace(module, "hashlib", hashing)


class _Copies:
    """The copies of large constants, by their SHA-256, and which copy has which."""

    def __init__(self) -> None:
        self._held: dict[bytes, bytes] = {}
        self._hashes: dict[int, Any] = {}

    def copy(self, data: Any) -> bytes:
        """Return `bytes(data)`."""
        if not isinstance(data, ctypes.Array) or ctypes.sizeof(data) < _LARGE:
            return bytes(data)
        found = hashlib.sha256(data)
        held = self._held.get(found.digest())
        if held is None:
            held = self._held[found.digest()] = bytes(data)
            self._hashes[id(held)] = found
        return held

    def sha256(self, data: Any) -> Any:
        """Return `hashlib.sha256(data)`."""
        known = self._hashes.get(id(data))
        return hashlib.sha256(data) if known is None else known

    def forget(self) -> None:
        """Let go of everything."""
        self._held.clear()
        self._hashes.clear()
