"""Adapters as the command line and the library face refer to them.

One reference is one `--adapter`:

| text | meaning |
|---|---|
| `NAME=DIR` | the adapter in directory DIR |
| `NAME=WEIGHTS,CONFIG` | an adapter given as its two files (`.safetensors`, `.json`): both or neither |
| `NAME=PART:STRENGTH+PART:STRENGTH...` | a composite: several adapters as one |
| any of these with `@STRENGTH` at the end | the same, its effect times STRENGTH |

A value that is an existing directory is that directory, whatever it looks like.

A PART is the NAME of another reference of the same command, whatever their order and with the strength it has there
(`mix=pirate:0.7+shout:0.3`), or a directory with a slash in it (`mix=adapters/pirate:0.7+adapters/shout:0.3`), whose
adapter is then only a part and not one of its own. `NAME+NAME` alone, without strengths, adds them at full strength.
Strengths are decimal numbers, with a sign and an exponent if wanted (`0.5`, `+1`, `-2e-1`); negative ones take an
effect away. A directory that does not exist here and looks like something else is written with a slash: `x=./a+b`,
`x=runs/v@2/`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import attrs

from lora_core.adapters.names import name_problem
from lora_core.errors import Problem, UsageError

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_NAME = r"[A-Za-z][A-Za-z0-9_]*"
_STRENGTH = re.compile(rf"(?P<rest>.+)@(?P<strength>{_NUMBER})", re.DOTALL)
_NAMED_PART = re.compile(rf"(?P<of>{_NAME})(?::(?P<strength>{_NUMBER}))?")
_STRONG_PART = re.compile(rf"(?P<of>.+):(?P<strength>{_NUMBER})", re.DOTALL)
_PLAIN_PATH = re.compile(r"[^:+]*[/\\][^:+]*", re.DOTALL)
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
        return _is_path(self.of)


@attrs.frozen(kw_only=True)
class AdapterReference:
    """One adapter to read: exactly one of `directory`, (`weights` and `config`), `package`, or `parts` is given."""

    name: str
    directory: Path | None = None
    weights: Path | None = None
    config: Path | None = None
    package: Path | None = None
    parts: tuple[CompositePart, ...] = ()
    strength: float = 1.0

    def __attrs_post_init__(self) -> None:
        problem = name_problem(self.name)
        if problem is not None:
            raise UsageError(problem)
        if not all(map(math.isfinite, (self.strength, *(part.strength for part in self.parts)))):
            raise UsageError(f"A strength of adapter {self.name!r} is not a finite number.")
        if (self.weights is None) != (self.config is None):
            alone = self.weights or self.config
            raise UsageError(f"Adapter {self.name!r} is given as one file, {str(alone)!r}.", remedy=_BOTH)
        given = (self.directory, self.weights, self.package, self.parts or None)
        if sum(each is not None for each in given) != 1:
            what = f"Adapter {self.name!r} must be a directory, two files, a package or a composite."
            raise UsageError(what, remedy=_FORMS)
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
        if _exists(value):
            return cls(name=name, directory=Path(value))
        strength = 1.0
        match = _STRENGTH.fullmatch(value)
        if match is not None:
            value, strength = match["rest"], float(match["strength"])
        if _exists(value):
            return cls(name=name, directory=Path(value), strength=strength)
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
    parts = _split(value, _strong_part)
    if parts is None:
        parts = _split(value, _named_part)
        if parts is None or len(parts) < 2:
            return ()
    return parts


def _split(value: str, read: Callable[[str], CompositePart | None], start: int = 0) -> tuple[CompositePart, ...] | None:
    """Return the parts that `value` from `start` on is joined of by `+`, each as `read` understands it.

    A `+` may also stand in an exponent, before a number and in a directory's name: of several readings the one with an
    existing directory counts, then the one with the shortest first part. None if there is no reading.
    """
    ends = [match.start() for match in re.finditer(r"\+|$", value) if match.start() > start]
    pieces = [(end, part) for end in ends if (part := read(value[start:end])) is not None]
    for end, part in sorted(pieces, key=lambda piece: not (piece[1].is_directory and _exists(piece[1].of))):
        rest: tuple[CompositePart, ...] | None = () if end == len(value) else _split(value, read, end + 1)
        if rest is not None:
            return (part, *rest)
    return None


def _strong_part(text: str) -> CompositePart | None:
    match = _STRONG_PART.fullmatch(text)
    if match is None:
        return None
    of = match["of"]
    if not re.fullmatch(_NAME, of) and not _PLAIN_PATH.fullmatch(of) and not (_is_path(of) and _exists(of)):
        return None
    return CompositePart(of=of, strength=float(match["strength"]))


def _named_part(text: str) -> CompositePart | None:
    match = _NAMED_PART.fullmatch(text)
    return None if match is None else CompositePart(of=match["of"], strength=float(match["strength"] or 1.0))


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text


def _exists(text: str) -> bool:
    """Say whether `text` is a directory that exists."""
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):
        return False


def _path(text: str) -> Path | None:
    return Path(text) if text else None
