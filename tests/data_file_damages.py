"""What is done to an adapter's data file (FlatTensor) in tests of those who read one."""

from __future__ import annotations

import struct


def cut(data: bytes) -> bytes:
    """Take the end away."""
    return data[:-200]


def longer(data: bytes) -> bytes:
    """Put bytes behind the last segment."""
    return data + bytes(200)


def no_header(data: bytes) -> bytes:
    """Spoil the magic number of the header."""
    return data[:8] + b"XX" + data[10:]


def far_segments(data: bytes) -> bytes:
    """Let segments begin behind the end."""
    return data[:32] + struct.pack("<Q", 1 << 40) + data[40:]


DAMAGES = (cut, longer, no_header, far_segments)
