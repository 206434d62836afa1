"""Groups of adapters that share encodings, and the sections that each member so gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from lora_core.errors import Problem
from lora_core_qnn_sim.artifacts.section import SectionPart
from lora_core_qnn_sim.errors import GroupingError
from lora_core_qnn_sim.options import Mode
from lora_core_qnn_sim.plain_yaml import read_yaml

_YES, _NO, _NOTHING = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("", "~", "null")
"""What YAML 1.1 takes for a flag or for nothing, in small letters."""


@attrs.frozen(kw_only=True)
class Group:
    """Adapters with one set of encodings. The first member's name is that of the encodings section.

    `split` asks for separate sections even of a group of one.
    """

    name: str
    members: tuple[str, ...]
    split: bool = False

    @property
    def leader(self) -> str:
        """The member whose name the encodings section bears."""
        return self.members[0]


def parts_of(adapter: str, groups: Iterable[Group], mode: Mode) -> tuple[SectionPart, ...]:
    """Return the sections that `adapter` gets.

    Mode `none`: weights. Alone: one combined section. In a group: the leader an encodings-only and a weights-only
    section, the others weights only.
    """
    if mode == "none":
        return ("weights",)
    group = next((group for group in groups if adapter in group.members), None)
    if group is None or (len(group.members) == 1 and not group.split):
        return ("combined",)
    return ("encodings", "weights") if adapter == group.leader else ("weights",)


def parse_groups(words: Sequence[str]) -> tuple[Group, ...]:
    """Return the groups that `NAME=a,b` words ask for; raises `GroupingError` with every wrong word."""
    groups, problems = [], []
    for word in words:
        name, equals, members = word.partition("=")
        names = tuple(member.strip() for member in members.split(",") if member.strip())
        if not name or not equals or not names:
            problems.append(Problem(what=f"A group is NAME=a,b, not {word!r}", remedy="For example --group fun=a1,a2."))
        groups.append(Group(name=name, members=names))
    if problems:
        raise GroupingError(problems)
    return tuple(groups)


def group_problems(groups: Sequence[Group], adapters: Iterable[str], mode: Mode) -> list[Problem]:
    """Return what is wrong with `groups` for these adapters: unknown or repeated members and names."""
    known, seen, names = set(adapters), set[str](), set[str]()
    problems = []
    if groups and mode == "none":
        what = "Groups share encodings per group, but in mode 'none' all adapters share one set"
        problems.append(Problem(what=what, remedy="Use --quant-updatable adapter_only or all with groups."))
    for group in groups:
        if group.name in names:
            problems.append(Problem(what=f"There are two groups {group.name!r}"))
        names.add(group.name)
        for member in group.members:
            if member not in known:
                what = f"Group {group.name!r} has member {member!r}, which is no adapter of this export"
                problems.append(Problem(what=what, remedy=f"Adapters: {', '.join(sorted(known)) or 'none'}."))
            elif member in seen:
                problems.append(Problem(what=f"Adapter {member!r} is in two groups"))
            seen.add(member)
    return problems


def read_groups(path: Path) -> tuple[Group, ...]:
    """Return the groups of an adapter weight config in the vendor's YAML; raises `GroupingError`.

    An entry with `weights_only` and `encodings_only` leads a group; entries with `weights_only` alone join the group
    whose leader names the same `encodings` file, or the last one above them if they name none. An entry with neither
    stands alone.
    """
    groups: dict[str, Group] = {}
    leaders: dict[str, str] = {}
    last, problems = "", []
    for entry in _use_cases(path):
        name, file = _text(entry, "name", path), _text(entry, "encodings", path)
        weights, encodings = _flag(entry, "weights_only", path), _flag(entry, "encodings_only", path)
        if weights and encodings:
            groups[name] = Group(name=name, members=(name,), split=True)
            last = leaders[file] = name
        elif weights:
            leader = leaders.get(file, "") if file else last
            if leader:
                groups[leader] = attrs.evolve(groups[leader], members=(*groups[leader].members, name))
            else:
                what = f"Use case {name!r} is weights_only, but no use case above it brings its encodings"
                problems.append(Problem(what=what, where=str(path), remedy="Give its group's first both flags."))
        elif encodings:
            what = f"Use case {name!r} is encodings_only: it has no weights to apply"
            problems.append(Problem(what=what, where=str(path), remedy="Give it weights_only too."))
    if problems:
        raise GroupingError(problems)
    return tuple(groups.values())


def _use_cases(path: Path) -> list[Mapping[str, object]]:
    try:
        data = read_yaml(path)
    except OSError as error:
        raise GroupingError(f"Cannot read the groups: {error}", where=str(path)) from error
    cases = data.get("use_case") if isinstance(data, dict) else None
    if not isinstance(cases, list) or not all(isinstance(case, dict) and "name" in case for case in cases):
        raise GroupingError(
            "The file has no list `use_case:` of entries with a name",
            where=str(path),
            remedy="Write `use_case:` with one entry for each adapter.",
        )
    return cases


def _text(case: Mapping[str, object], key: str, path: Path) -> str:
    """Return what the entry says of `key`, "" for nothing; raises `GroupingError` for a list or a mapping."""
    value = case.get(key, "")
    if not isinstance(value, str):
        raise GroupingError(f"`{key}` of a use case is no text: {value!r:.60}", where=str(path))
    return "" if value.lower() in _NOTHING else value


def _flag(case: Mapping[str, object], key: str, path: Path) -> bool:
    word = _text(case, key, path).lower()
    if word in ("", *_NO):
        return False
    if word in _YES:
        return True
    raise GroupingError(f"`{key}` of a use case is neither true nor false: {word!r:.60}", where=str(path))
