"""Memory is not locked while programs are loaded."""

from __future__ import annotations

import ctypes

import pytest
from lora_core_xnnpack.runtime.locking import nothing_locked

LIBC = ctypes.CDLL(None)


def can_lock() -> bool:
    page = ctypes.create_string_buffer(64)
    return bool(LIBC.mlock(page, 64) == 0 and LIBC.munlock(page, 64) == 0)


def test_nothing_can_be_locked_inside_of_the_block_and_afterwards_as_before():
    before = can_lock()
    with nothing_locked():
        inside = can_lock()
    assert (before, inside, can_lock()) == (True, False, True)


def test_limits_return_when_a_load_fails():
    def fail() -> None:
        with nothing_locked():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert can_lock()
