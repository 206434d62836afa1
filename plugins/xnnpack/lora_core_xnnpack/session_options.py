"""What a session of the XNNPACK backend can be told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import Problem, UsageError
from lora_core.suggestions import did_you_mean
from lora_core_xnnpack.runtime.packed_cache import default_directory


@attrs.frozen(kw_only=True)
class SessionOptions:
    """How to run a bundle.

    `weight_cache` shares packed weights between programs. `threads` is the number of threads (0: the runtime decides),
    for the whole process. `packed_cache` is a directory in which packed weights are kept for further processes (if
    True is given, one in the user's cache); the session that makes the file proves it when it closes.
    """

    weight_cache: bool = True
    threads: int = 0
    packed_cache: Path | None = None

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> SessionOptions:
        """Return the options given by name; raises `UsageError` with everything that is wrong."""
        known = [field.name for field in attrs.fields(cls)]
        problems = [
            Problem(what=f"The XNNPACK session has no option {name!r}", remedy=did_you_mean(name, known))
            for name in options
            if name not in known
        ]
        weight_cache, threads = options.get("weight_cache", True), options.get("threads", 0)
        packed_cache = options.get("packed_cache")
        if not isinstance(weight_cache, bool):
            problems.append(Problem(what=f"Option 'weight_cache' is {weight_cache!r}, and must be True or False"))
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            problems.append(Problem(what=f"Option 'threads' is {threads!r}, and must be a number of threads"))
        if not isinstance(packed_cache, str | Path | bool | None):
            problems.append(Problem(what=f"Option 'packed_cache' is {packed_cache!r}, and must be a directory"))
        if problems:
            raise UsageError(problems)
        return cls(
            weight_cache=weight_cache,
            threads=threads,
            packed_cache=_directory(packed_cache),
        )


def _directory(given: str | Path | bool | None) -> Path | None:
    if isinstance(given, bool):
        return default_directory() if given else None
    return None if given is None else Path(given).absolute()
