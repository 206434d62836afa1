# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Tensors that stay what they are while several programs are lowered: hashed once, and not copied."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any

import torch
from executorch.exir._serialize._cord import FileBackedData


class KnownBytes(FileBackedData):  # type: ignore[misc]  # ExecuTorch is untyped here
    """The bytes of a tensor where they are, in a form that ExecuTorch stores as it does `bytes`.

    ExecuTorch 1.5.1 (`exir/_serialize/_cord.py`) takes `bytes` or data that lies in a file; this lies in the memory of
    a tensor, which it keeps from being freed. Drop when it takes a memoryview.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        """Take a contiguous tensor, which nobody may write into from now on."""
        plain = tensor.detach()
        plain = plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain
        self._view = memoryview(plain.numpy().reshape(-1)).cast("B")
        self._hash: Any = None

    @property
    def hash(self) -> Any:
        """The SHA-256 of all bytes, as `hashlib` gives it."""
        if self._hash is None:
            self._hash = hashlib.sha256(self._view)
        return self._hash

    def __deepcopy__(self, _memo: Any) -> KnownBytes:
        return self  # as bytes do

    def __len__(self) -> int:
        return len(self._view)

    def prefix(self, size: int) -> bytes:
        """Return the first `size` bytes."""
        return bytes(self._view[:size])

    def sha256(self) -> bytes:
        """Return the digest of `hash`."""
        return bytes(self.hash.digest())

    def to_bytes(self) -> bytes:
        """Return a copy."""
        return bytes(self._view)

    def write_to_file(self, outfile: BufferedIOBase) -> None:
        """Write all bytes."""
        outfile.write(self._view)

    def close(self) -> None:
        """Do nothing: there is no file."""


class KnownTensors:
    """Tensors that are held here, so that their addresses are those of no others, and what was made of them."""

    def __init__(self) -> None:
        self._at: dict[tuple[int, int], KnownBytes] = {}
        self._made: dict[tuple[int, int, str], torch.Tensor] = {}

    def hold(self, tensor: torch.Tensor) -> None:
        """Hold `tensor` as it is, unless it is a view of a part of its storage, or not contiguous."""
        size = tensor.numel() * tensor.element_size()
        if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == size > 0:
            self._at.setdefault((tensor.data_ptr(), size), KnownBytes(tensor))

    def hold_parts(self, tensor: torch.Tensor) -> None:
        """Hold `tensor`, or what a quantized one of torchao's consists of."""
        for part in getattr(tensor, "tensor_data_names", None) or ():
            self.hold(getattr(tensor, part))
        if not hasattr(tensor, "tensor_data_names"):
            self.hold(tensor)

    def at(self, address: int, size: int) -> KnownBytes | None:
        """Return the bytes of the held tensor whose storage is these; None if none is."""
        return self._at.get((address, size))

    def bytes_of(self, tensor: torch.Tensor) -> KnownBytes | None:
        """Return the bytes of `tensor`; None if it is not held."""
        return self.at(*_place(tensor)) if tensor.is_contiguous() else None

    def made(self, tensor: torch.Tensor, form: str, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return `make(tensor)`, the tensor in `form`; what is made of a tensor that is held is held too."""
        if self.bytes_of(tensor) is None:
            return make(tensor)
        key = (*_place(tensor), form)
        if key not in self._made:
            self._made[key] = make(tensor)
            self.hold(self._made[key])
        return self._made[key]


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()
