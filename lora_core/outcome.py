"""How a check ended: one word for everything that checks (`verify`, the conformance kit)."""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """How a check ended. `UNCHECKED`: it could not be made, its detail says why; that is no pass."""

    PASSED = "passed"
    FAILED = "failed"
    UNCHECKED = "unchecked"
