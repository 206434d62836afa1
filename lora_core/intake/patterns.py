"""Regular expressions of strangers, in bounded time.

Python's engine tries every way in which an expression can match: `(.+)+!` takes longer than anybody waits. What can
only take a short time runs here; the rest runs in a process that is given a few seconds.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

PATIENCE = 5.0
"""Seconds that all names together may take."""
LONGEST = 20_000
"""Characters of an expression; lists of every layer of a large model have some thousands."""
LOOPS = 4
"""Loops one after another that are tried here: on names of `_NAME` characters at most some million steps."""
_NAME = 128

Mode = Literal["fullmatch", "match"]

# Reads {"pattern", "mode", "names"}; writes the numbers of the names that match.
_MATCHER = """
import json, re, sys
task = json.load(sys.stdin)
match = getattr(re.compile(task["pattern"]), task["mode"])
json.dump([number for number, name in enumerate(task["names"]) if match(name)], sys.stdout)
"""


class TooSlowError(re.error):
    """An expression that is not done in time."""


def quick(pattern: str) -> bool:
    """Say whether `pattern` cannot take long on a name: no loop around a group, and few loops."""
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    return not re.search(r"\)[*+{]", bare) and len(re.findall(r"[*+{]", bare)) <= LOOPS


@lru_cache(maxsize=8192)  # Python's own cache forgets after 512
def compiled(pattern: str) -> re.Pattern[str]:
    """Compile `pattern`; raises `re.error` also for what only its size makes impossible."""
    if len(pattern) > LONGEST:
        raise re.error(f"it has {len(pattern)} characters, {LONGEST} at most are read")
    try:
        return re.compile(pattern)
    except (RecursionError, OverflowError) as error:
        raise re.error(f"it is too large: {error}") from error


def matching(pattern: str, names: Sequence[str], mode: Mode = "fullmatch") -> frozenset[str]:
    """Return those of `names` that `pattern` matches, in `mode` of Python's `re`.

    Raises `re.error` for what is no expression, `TooSlowError` for one that takes longer than `PATIENCE`.
    """
    return _matching(pattern, tuple(names), mode)


@lru_cache(maxsize=4096)  # many adapters of one command have the same expressions
def _matching(pattern: str, names: tuple[str, ...], mode: Mode) -> frozenset[str]:
    expression = compiled(pattern)
    if quick(pattern) and all(len(name) <= _NAME for name in names):
        match = getattr(expression, mode)
        return frozenset(name for name in names if match(name))
    import subprocess  # few expressions need it

    task = json.dumps({"pattern": pattern, "mode": mode, "names": names})
    command = [sys.executable, "-I", "-S", "-c", _MATCHER]
    try:
        done = subprocess.run(command, input=task, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except subprocess.TimeoutExpired:
        raise TooSlowError(f"the expression {pattern[:80]!r} takes longer than {PATIENCE:.0f} s to match") from None
    return frozenset(names[number] for number in json.loads(done.stdout))
