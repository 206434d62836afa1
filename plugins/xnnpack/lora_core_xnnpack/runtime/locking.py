"""Keep the runtime from locking whole files in memory as it maps them.

`MmapDataLoader` maps the foundation again for every program and asks the system to lock it (`mlock`), which reads every
page of it: loading an adapter then takes time that grows with the base. Python cannot ask for another mode (ExecuTorch
1.5.1), but the loader goes on where the system refuses, and a system refuses a process that may lock nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h
_IPC_LOCK = 1 << 14  # CAP_IPC_LOCK, with which limits do not count


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def nothing_locked() -> Iterator[None]:
    """Let the system refuse to lock memory inside of the block: for this process by its limit, for this thread also if
    it may exceed limits. Both are as before afterwards. Where there are no such limits nothing is done.
    """
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with _without_capability():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


@contextlib.contextmanager
def _without_capability() -> Iterator[None]:
    """Take CAP_IPC_LOCK out of this thread's effective capabilities for as long as the block lasts."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc, header, halves = ctypes.CDLL(None), _Header(version=_VERSION_3), (_Half * 2)()
    has = libc.capget(ctypes.byref(header), halves) == 0 and halves[0].effective & _IPC_LOCK
    if not has:
        yield
        return
    halves[0].effective &= ~_IPC_LOCK
    libc.capset(ctypes.byref(header), halves)
    try:
        yield
    finally:
        halves[0].effective |= _IPC_LOCK
        libc.capset(ctypes.byref(header), halves)
