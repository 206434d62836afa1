"""What a backend can declare; import-free so that descriptors can use it."""

from __future__ import annotations

from enum import Enum


class Capability(Enum):
    """What a backend declares it can do; each is proven by the conformance kit or raises `UnsupportedError`."""

    EXPORT = "export"
    LINK = "link"
    RUN = "run"
    EVALUATE = "evaluate"
