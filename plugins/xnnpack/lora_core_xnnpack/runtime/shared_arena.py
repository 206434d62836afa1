"""One KV cache and one set of activations for all programs of a session.

A program's planned memory is what it keeps from call to call and works in. A session runs one adapter at a time and
keeps no KV cache across a change of adapter, so its programs can plan into the same memory: the C++ interface of
`Module::load_method` takes it as a `HierarchicalAllocator` (in the 1.5.1 wheel:
`include/executorch/runtime/core/hierarchical_allocator.h`), Python's does not. It is mapped and not allocated, so that
pages nobody has written to take no memory and no time.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from importlib.metadata import version

_KNOWN = "1.5."  # where the class is laid out as below
_OWN_SPANS = 16
_SPARE = 2  # a program with LoRA plans more than one without; what is not used is no memory


class _Span(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class PlannedMemory(ctypes.Structure):
    """`HierarchicalAllocator` over buffers that lie elsewhere; a method that was loaded with it must not outlive it."""

    _fields_ = (("own", _Span * _OWN_SPANS), ("buffers", _Span), ("devices", _Span))


class SharedArena:
    """Memory for programs that run in turn; each finds there what it left only if no other has run since."""

    def __init__(self) -> None:
        self._buffers: list[mmap.mmap] = []

    @classmethod
    def where_known(cls) -> SharedArena | None:
        """Return an arena, or None where ExecuTorch is another than the one whose interface this is."""
        has_flags = hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MAP_ANONYMOUS")
        return cls() if has_flags and version("executorch").startswith(_KNOWN) else None

    def planned(self, sizes: Sequence[int]) -> PlannedMemory:
        """Return memory for a program that plans buffers of these bytes."""
        spans = (_Span * len(sizes))()
        kept = []
        for index, size in enumerate(sizes):
            buffer = self._buffer(index, size)
            kept.append(buffer)
            spans[index] = _Span(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer))
        found = PlannedMemory(buffers=_Span(ctypes.addressof(spans), len(sizes)))
        found.kept = (spans, kept)
        return found

    def _buffer(self, index: int, size: int) -> mmap.mmap:
        if index < len(self._buffers) and len(self._buffers[index]) >= size:
            return self._buffers[index]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        buffer = mmap.mmap(-1, max(_SPARE * size, mmap.PAGESIZE), flags=flags)
        # Programs that plan into a smaller one keep it.
        self._buffers[index : index + 1] = [buffer]
        return buffer
