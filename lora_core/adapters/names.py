"""Adapter names: what they may be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lora_core.errors import Problem
from lora_core.specs import ReservedNames

# A name becomes a file name, an ExecuTorch method, a Core ML function (letters, digits and underscores only, see
# `NameSanitizer` in coremltools) and a C++ identifier in the files handed to QNN.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

_STORED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

_RULE = "A name is a letter, then up to 63 letters, digits and underscores."

# Words of the command line, files of a bundle, and device names of Windows. What a backend's own methods and files are
# called is the backend's to say (`BackendSpec.reserved`).
RESERVED = frozenset(
    (
        *("base", "foundation", "default", "manifest", "template", "templates", "relocations", "tokenizer"),
        *("adapters", "artifacts", "lora", "none"),
        *("con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))),
    )
)
_NOTHING = ReservedNames()


def is_name(text: str) -> bool:
    """Say whether `text` can be the name of an adapter in a bundle: a part of a path, and safe to show.

    Wider than what new adapters may be called: older bundles have hyphens and dots.
    """
    return _STORED.fullmatch(text) is not None


def name_problem(name: str, reserved: ReservedNames = _NOTHING) -> Problem | None:
    """Return what is wrong with `name` as an adapter's name, with a name that would do; None if nothing is.

    `reserved` are the names that the bundle's backend keeps for itself.
    """
    suggestion = f"For example {safe_name(name, reserved)!r}."
    if not _NAME.fullmatch(name):
        return Problem(what=f"{name!r} cannot be an adapter's name", remedy=f"{_RULE} {suggestion}")
    reason = _reserved(name.lower(), reserved)
    return None if reason is None else Problem(what=f"Adapter name {name!r} is reserved: {reason}", remedy=suggestion)


def name_problems(
    names: Sequence[str], *, taken: Iterable[str] = (), reserved: ReservedNames = _NOTHING
) -> list[Problem]:
    """Return what is wrong with `names` of new adapters beside those `taken`: each by itself, and names that are in use
    or differ only in case, which are one file on some systems.
    """
    problems = [problem for name in names if (problem := name_problem(name, reserved)) is not None]
    in_bundle = {name.lower(): name for name in taken}
    given: dict[str, str] = {}
    for name in names:
        key = name.lower()
        if key in in_bundle:
            remedy = "Remove that one first, or choose another name."
            problems.append(_clash(name, in_bundle[key], "is already in the bundle", remedy))
        elif key in given:
            problems.append(_clash(name, given[key], "is given twice", "Give each adapter a name of its own."))
        given.setdefault(key, name)
    return problems


def safe_name(text: str, reserved: ReservedNames = _NOTHING) -> str:
    """Return a valid name made from `text` (a directory's name, say); not necessarily unique."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:56] or "adapter"
    name = name if name[0].isalpha() else f"a_{name}"
    return name if _reserved(name.lower(), reserved) is None else f"my_{name}_lora"


def _reserved(name: str, reserved: ReservedNames) -> str | None:
    if name in RESERVED or name in reserved.names:
        return "bundles and runtimes use it for themselves"
    for ending in reserved.endings:
        if name.endswith(ending):
            return f"names that end in {ending!r} are methods and files of other adapters"
    for beginning in reserved.beginnings:
        if name.startswith(beginning):
            return f"methods that begin with {beginning!r} are a runner's metadata"
    return None


def _clash(name: str, other: str, what: str, remedy: str) -> Problem:
    case = "" if name == other else f" (as {other!r}; case does not count, for file systems that ignore it)"
    return Problem(what=f"Adapter name {name!r} {what}{case}", remedy=remedy)
