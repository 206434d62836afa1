"""Pages of a mapped file are let go of, and what the mapping reads stays the same."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import pytest
from lora_core_xnnpack.runtime.mapped_pages import drop_pages
from mapped_memory import resident

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is mapped")

SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "foundation.ptd"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def test_locked_pages_are_dropped_and_read_again(file):
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        content = np.frombuffer(mapping, np.uint8)
        assert ctypes.CDLL(None).mlock(ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(SIZE)) == 0
        assert resident(file) == {"Size": SIZE, "Rss": SIZE, "Locked": SIZE}
        assert drop_pages(file) == SIZE
        assert resident(file) == {"Size": SIZE, "Rss": 0, "Locked": 0}
        assert content.tobytes() == file.read_bytes()
        del content


def test_a_mapping_that_can_be_written_to_is_left_alone(file):
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        mapping[:4] = b"mine"
        assert drop_pages(file) == 0
        assert mapping[:4] == b"mine"


def test_other_files_are_left_alone(file, tmp_path):
    other = tmp_path / "other.ptd"
    other.write_bytes(bytes(SIZE))
    with other.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        assert mapping.find(b"x") == -1  # reads it all
        assert drop_pages(file) == 0
        assert resident(other)["Rss"] == SIZE
