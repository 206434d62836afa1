"""Adapter names: what they may be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lora_core.errors import Problem

# A name becomes a file name, an ExecuTorch method, a Core ML function (letters, digits and underscores only, see
# `NameSanitizer` in coremltools) and a C++ identifier in the files handed to QNN.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

_RULE = "A name is a letter, then up to 63 letters, digits and underscores."

# Methods of the base, files of a bundle, and what runtimes call their own.
RESERVED = frozenset(
    (
        *("forward", "prefill", "decode", "encode", "init", "main", "base", "foundation", "default", "default_adapter"),
        *("manifest", "template", "templates", "relocations", "tokenizer", "adapters", "artifacts", "lora", "none"),
        *("con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))),
    )
)

# `NAME_forward` and `NAME_prefill` are methods of adapter NAME in a program of several methods;
# `NAME_encodings` and the like are sections of a QNN context binary.
RESERVED_ENDINGS = ("_forward", "_prefill", "_decode", "_encodings", "_weights", "_default_adapter")

# `get_max_seq_len`, `use_kv_cache`, `enable_dynamic_shape`: methods that ExecuTorch's runners read as metadata.
RESERVED_BEGINNINGS = ("get_", "use_", "enable_", "append_", "kv_")


def name_problem(name: str) -> Problem | None:
    """Return what is wrong with `name` as an adapter's name, with a name that would do; None if nothing is."""
    suggestion = f"For example {safe_name(name)!r}."
    if not _NAME.fullmatch(name):
        return Problem(what=f"{name!r} cannot be an adapter's name", remedy=f"{_RULE} {suggestion}")
    reason = _reserved(name.lower())
    return None if reason is None else Problem(what=f"Adapter name {name!r} is reserved: {reason}", remedy=suggestion)


def name_problems(names: Sequence[str], *, taken: Iterable[str] = ()) -> list[Problem]:
    """Return what is wrong with `names` of new adapters beside those `taken`: each by itself, and names that are in use
    or differ only in case, which are one file on some systems.
    """
    problems = [problem for problem in map(name_problem, names) if problem is not None]
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


def safe_name(text: str) -> str:
    """Return a valid name made from `text` (a directory's name, say); not necessarily unique."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:56] or "adapter"
    name = name if name[0].isalpha() else f"a_{name}"
    return name if _reserved(name.lower()) is None else f"my_{name}_lora"


def _reserved(name: str) -> str | None:
    if name in RESERVED:
        return "bundles and runtimes use it for themselves"
    for ending in RESERVED_ENDINGS:
        if name.endswith(ending):
            return f"names that end in {ending!r} are methods and files of other adapters"
    for beginning in RESERVED_BEGINNINGS:
        if name.startswith(beginning):
            return f"methods that begin with {beginning!r} are a runner's metadata"
    return None


def _clash(name: str, other: str, what: str, remedy: str) -> Problem:
    case = "" if name == other else f" (as {other!r}; case does not count, for file systems that ignore it)"
    return Problem(what=f"Adapter name {name!r} {what}{case}", remedy=remedy)
