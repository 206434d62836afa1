"""Planned memory that programs take in turn, as the runtime reads it."""

from __future__ import annotations

import ctypes

from lora_core_xnnpack.runtime.shared_arena import PlannedMemory, SharedArena


def buffers(planned: PlannedMemory) -> list[tuple[int, int]]:
    """Return address and size of each buffer."""
    words = (ctypes.c_size_t * (2 * planned.buffers.size)).from_address(planned.buffers.data)
    return list(zip(words[0::2], words[1::2], strict=True))


def test_programs_plan_into_the_same_memory_as_long_as_it_is_large_enough():
    arena = SharedArena()
    small, larger = (buffers(arena.planned(sizes)) for sizes in ((10_000, 0), (12_000, 0)))
    assert small == larger
    assert small[0][1] >= 12_000


def test_a_program_that_plans_more_gets_its_own_and_others_keep_theirs():
    arena = SharedArena()
    first = arena.planned([10_000])
    ((address, size),) = buffers(first)
    ((other, enough),) = buffers(arena.planned([100 * size]))
    assert other != address
    assert enough >= 100 * size
    ctypes.memset(address, 1, size)  # still mapped


def test_memory_begins_as_zeros():
    planned = SharedArena().planned([4096])
    ((address, size),) = buffers(planned)
    assert ctypes.string_at(address, size) == bytes(size)
