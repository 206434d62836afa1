"""Adapters as the command line and the library face refer to them.

One reference is one `--adapter`:

| text | meaning |
|---|---|
| `NAME=DIR` | the adapter in directory DIR |
| `NAME=WEIGHTS,CONFIG` | an adapter given as its two files (`.safetensors`, `.json`): both or neither |
| `NAME=PART:STRENGTH+PART:STRENGTH...` | a composite: several adapters as one |
| any of these with `@STRENGTH` at the end | the same, its effect times STRENGTH |

A PART is the NAME of another reference of the same command, whatever their order and with the strength it has there
(`mix=pirate:0.7+shout:0.3`), or a directory with a slash in it (`mix=adapters/pirate:0.7+adapters/shout:0.3`), whose
adapter is then only a part and not one of its own. `NAME+NAME` alone, without strengths, adds them at full strength.
Strengths are plain decimal numbers, negative ones take an effect away. A directory that looks like something else is
written with a slash: `x=./a+b`, `x=runs/v@2/`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import attrs

from lora_core.adapters.names import name_problem
from lora_core.errors import Problem, UsageError

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_NAME = r"[A-Za-z][A-Za-z0-9_]*"
_STRENGTH = re.compile(rf"(?P<rest>.+)@(?P<strength>{_NUMBER})", re.DOTALL)
_NAMED_PART = re.compile(rf"(?P<of>{_NAME})(?::(?P<strength>{_NUMBER}))?")
_STRONG_PART = re.compile(rf"(?P<of>{_NAME}|[^:+]*[/\\][^:+]*):(?P<strength>{_NUMBER})")
_FORMS = (
    "Write NAME=DIR, NAME=WEIGHTS.safetensors,CONFIG.json or NAME=PART:0.7+PART:0.3, each with @STRENGTH if wanted."
)
_BOTH = "Give the weights file and the configuration file, both or neither: NAME=WEIGHTS.safetensors,CONFIG.json."
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@attrs.frozen(kw_only=True)
class CompositePart:
    """One part of a composite: the name of another reference, or a directory."""

    of: str
    strength: float = 1.0

    @property
    def is_directory(self) -> bool:
        """True if `of` is a path and not a name."""
        return "/" in self.of or "\\" in self.of


@attrs.frozen(kw_only=True)
class AdapterReference:
    """One adapter to read: exactly one of `directory`, (`weights` and `config`), or `parts` is given."""

    name: str
    directory: Path | None = None
    weights: Path | None = None
    config: Path | None = None
    parts: tuple[CompositePart, ...] = ()
    strength: float = 1.0

    def __attrs_post_init__(self) -> None:
        problem = name_problem(self.name)
        if problem is not None:
            raise UsageError(problem)
        if not all(map(math.isfinite, (self.strength, *(part.strength for part in self.parts)))):
            raise UsageError(f"A strength of adapter {self.name!r} is not a finite number.")
        if (self.weights is None) != (self.config is None):
            given = self.weights or self.config
            raise UsageError(f"Adapter {self.name!r} is given as one file, {str(given)!r}.", remedy=_BOTH)
        if (self.directory is not None) + (self.weights is not None) + bool(self.parts) != 1:
            raise UsageError(f"Adapter {self.name!r} must be a directory, two files or a composite.", remedy=_FORMS)
        repeated = sorted({part.of for part in self.parts if [other.of for other in self.parts].count(part.of) > 1})
        if repeated:
            what = f"Composite {self.name!r} names {', '.join(repeated)} more than once."
            raise UsageError(what, remedy="Add the strengths up and name each part once.")

    @classmethod
    def from_text(cls, text: str) -> AdapterReference:
        """Parse one `--adapter`, as this module's docstring defines it; raises `UsageError`."""
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value:
            raise UsageError(f"{text!r} is not an adapter.", remedy=_FORMS)
        strength = 1.0
        match = _STRENGTH.fullmatch(value)
        if match is not None:
            value, strength = match["rest"], float(match["strength"])
        parts = _parts(value)
        if parts:
            return cls(name=name, parts=parts, strength=strength)
        weights, comma, config = value.partition(",")
        if weights.endswith(_WEIGHTS) or config.endswith(".json") or (not comma and value.endswith(".json")):
            if not comma:
                weights, config = ("", value) if value.endswith(".json") else (value, "")
            return cls(name=name, weights=_path(weights), config=_path(config), strength=strength)
        return cls(name=name, directory=Path(value), strength=strength)


def parse_references(texts: tuple[str, ...] | list[str]) -> tuple[AdapterReference, ...]:
    """Parse several `--adapter`; raises one `UsageError` with the problems of all of them."""
    references: list[AdapterReference] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            references.append(AdapterReference.from_text(text))
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    return tuple(references)


def _parts(value: str) -> tuple[CompositePart, ...]:
    """Return the parts of a composite; none if `value` is not one."""
    pieces = value.split("+")
    matches = [_STRONG_PART.fullmatch(piece) for piece in pieces]
    if not all(matches):
        matches = [_NAMED_PART.fullmatch(piece) for piece in pieces]
        if len(pieces) < 2 or not all(matches):
            return ()
    return tuple(
        CompositePart(of=match["of"], strength=float(match["strength"] or 1.0))
        for match in matches
        if match is not None
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None
