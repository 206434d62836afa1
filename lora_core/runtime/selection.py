"""What a session is asked to run with: an adapter, an adapter at a strength, or several at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import attrs

from lora_core.adapters.reference import AdapterReference
from lora_core.capability import Capability
from lora_core.errors import Problem, UnsupportedError, UsageError
from lora_core.specs import BackendSpec
from lora_core.suggestions import did_you_mean

_PLUS = re.compile(r"\+(?=[A-Za-z])")
"""Between parts, and not in an exponent."""


@attrs.frozen(kw_only=True)
class Selection:
    """The strength of each linked adapter that takes part, 1 being that which it was linked at; none for the base."""

    strengths: Mapping[str, float]

    @classmethod
    def parse(cls, text: str | None) -> Selection:
        """Read `NAME`, `NAME@0.5` or `NAME:0.7+NAME:0.3`, as `--adapter` writes composites; None is the base.

        An `@` in a part that another follows is that part's own, and then every `@` is: `NAME@0.7+NAME@0.3`. Raises
        `UsageError` for anything else.
        """
        if text is None:
            return cls(strengths={})
        parts = _PLUS.split(text)
        own = any("@" in part for part in parts[:-1])
        reference = AdapterReference.from_text(f"selected={text.replace('@', ':') if own else text}")
        if reference.parts:
            return cls(strengths={part.of: part.strength * reference.strength for part in reference.parts})
        return cls(strengths={str(reference.directory or text): reference.strength})

    @property
    def needs(self) -> Capability | None:
        """What a backend must declare to run with this; None for the base, or an adapter as it was linked."""
        if len(self.strengths) > 1:
            return Capability.BLEND
        return Capability.STRENGTH if any(strength != 1 for strength in self.strengths.values()) else None

    def require_known(self, names: Collection[str], where: str = "") -> None:
        """Raise `UsageError` if an adapter that takes part is not among `names`."""
        unknown = [name for name in self.strengths if name not in names]
        problems = [
            Problem(what=f"The bundle has no adapter {name!r}", where=where, remedy=did_you_mean(name, sorted(names)))
            for name in unknown
        ]
        if problems:
            raise UsageError(problems)


def as_linked(text: str, names: Collection[str], where: str) -> str:
    """Return the adapter of `names` that `text` is, where adapters are constants of methods in the bundle `where`.

    Raises `UsageError` for one that is not there, and `UnsupportedError` for a strength or a blend.
    """
    selection = Selection.parse(text)
    selection.require_known(names, where)
    if selection.needs is not None:
        raise UnsupportedError(
            f"The adapters of this bundle are constants of its programs, so {text!r} is none of its methods.",
            where=where,
            remedy="Export it with --lora inputs, where strengths and blends are those of a call, or link it as an "
            "adapter of its own: lora-core add BUNDLE --adapter NAME=DIR@STRENGTH.",
        )
    (name,) = selection.strengths
    return name


def require_selectable(texts: Sequence[str | None], spec: BackendSpec) -> None:
    """Raise `UnsupportedError` for each of `texts` that is more than a name, if `spec` declares no such selections.

    Raises `UsageError` for one that cannot be read. A backend that declares `STRENGTH` reads selections, and says
    itself why a bundle of its own cannot blend.
    """
    if {Capability.STRENGTH, Capability.BLEND} & spec.capabilities:
        return
    problems = []
    for text in texts:
        selection = Selection.parse(text)
        if selection.needs is not None:
            problems.append(_refused(str(text), selection, spec.name))
    if problems:
        raise UnsupportedError(problems)


def _refused(text: str, selection: Selection, backend: str) -> Problem:
    # What was linked is not kept as it was read: parts of a composite are given as directories again.
    if selection.needs is Capability.BLEND:
        what = f"Backend {backend!r} runs one adapter at a time, not {text!r}"
        joined = "+".join(f"DIR/{name}:{strength}" for name, strength in selection.strengths.items())
        return Problem(what=what, remedy=f"Link them as one: lora-core add BUNDLE --adapter mix={joined}.")
    ((name, strength),) = selection.strengths.items()
    what = f"Backend {backend!r} runs adapters at the strength that they were linked at, not {text!r}"
    return Problem(
        what=what, remedy=f"Link it under another name: lora-core add BUNDLE --adapter {name}2=DIR@{strength}."
    )
