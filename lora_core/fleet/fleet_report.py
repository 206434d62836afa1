"""What came of a fleet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_core.bundle.durable import write_whole
from lora_core.errors import Problem


@attrs.frozen(kw_only=True)
class FailedAdapter:
    """An adapter of which there is no package, and why."""

    place: str
    name: str
    problems: tuple[Problem, ...]


@attrs.frozen(kw_only=True)
class FleetReport:
    """`packed` and `unchanged` are numbers of adapters, `failed` those without a package. `doubts`, by place, speak
    against adapters that fit, of those that this run has read; `gone` are packages whose adapters the source does not
    have any more, which are kept.
    """

    packed: int
    unchanged: int
    failed: tuple[FailedAdapter, ...]
    doubts: Mapping[str, str]
    gone: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """True if there is a package of every adapter."""
        return not self.failed

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return attrs.asdict(self)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        write_whole(path, [text.encode("utf-8", "backslashreplace")])  # names of files need not be text
