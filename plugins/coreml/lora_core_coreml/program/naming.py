"""What methods are called, and which adapter names cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from lora_core.errors import Problem

Kind = Literal["forward", "prefill"]

RESERVED = frozenset({"forward", "prefill", "decode"})
METHOD_HELP = (
    "Methods: forward is the base and NAME each adapter; with --multifunction forward (decode, one token) and prefill "
    "are the base, NAME_forward and NAME_prefill each adapter."
)

# ExecuTorch uses the method's name as the CoreML function's name, and MIL allows only identifiers.
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def kinds(multifunction: bool) -> tuple[Kind, ...]:
    """Return the kinds of method that a program has for its base and for each adapter."""
    return ("forward", "prefill") if multifunction else ("forward",)


def method_name(adapter: str | None, kind: Kind, multifunction: bool) -> str:
    """Return the name of the method of `kind` for `adapter` (None: the base)."""
    if adapter is None:
        return kind
    return f"{adapter}_{kind}" if multifunction else adapter


def name_problems(names: Sequence[str], multifunction: bool, taken: Iterable[str] = ()) -> list[Problem]:
    """Return what is wrong with adapter names: not identifiers, reserved, given twice, or equal to another method.

    `taken` are names of methods the program has besides (constant methods of the metadata).
    """
    problems = []
    methods: dict[str, str] = dict.fromkeys((*RESERVED, *taken), "")
    for name in names:
        where = f"--adapter {name}"
        if not _IDENTIFIER.fullmatch(name):
            what = f"Adapter name {name!r} cannot be a CoreML method"
            remedy = "Use letters, digits and underscores, and begin with a letter."
            problems.append(Problem(what=what, where=where, remedy=remedy))
            continue
        if name in RESERVED:
            what = f"Adapter name {name!r} is reserved for the base's own methods"
            problems.append(Problem(what=what, where=where, remedy=f"Reserved: {', '.join(sorted(RESERVED))}."))
            continue
        for kind in kinds(multifunction):
            method = method_name(name, kind, multifunction)
            owner = methods.get(method)
            if owner is None:
                methods[method] = name
                continue
            what = f"Method {method!r} of adapter {name!r} " + (
                f"is also a method of adapter {owner!r}" if owner else "is already a method of the program"
            )
            problems.append(Problem(what=what, where=where, remedy="Give the adapter another name."))
    return problems
