"""YAML that strangers wrote, as text, lists and mappings, within limits of time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lora_core.intake.files import read_regular
from lora_core.intake.limits import DEPTH, MB, RAISE, raised
from lora_core_qnn_sim.errors import GroupingError

_EVENTS_BY_LIBYAML, _EVENTS_BY_PYTHON = 150_000, 40_000
"""Scalars, beginnings and ends: libyaml takes 8 us for each, PyYAML's own parser 90. 10,000 use cases have 140,000."""


def read_yaml(path: Path) -> Any:
    """Return the one document of a YAML file; every scalar is the text that stands there, and no tag means anything.

    Numbers and dates stay text because PyYAML's readers of them fail on what a tag forces on them (`!!bool x`) and take
    minutes for one of many colons (`1:1:1:...`). Raises `GroupingError` for what is no YAML, for a key that stands
    twice, for aliases, and for more than the limits; `OSError`.
    """
    import yaml

    data = read_regular(path, MB, GroupingError)
    loader_type = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        text = data.decode("utf-8")
        _require_little(text, path, loader_type)
        loader = loader_type(text)
        node = loader.get_single_node()
        _refuse_repeated_keys(node, path)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise GroupingError(f"Cannot read the groups: {error}", where=str(path)) from error


def _require_little(text: str, path: Path, loader: Any) -> None:
    """Raise `GroupingError` for aliases, which can stand for trees of aliases, for what is nested deeply, of which
    PyYAML takes seconds for some hundred brackets, and for too much. A list of use cases needs none of them.
    """
    import yaml

    limit = raised(_EVENTS_BY_PYTHON if loader is yaml.BaseLoader else _EVENTS_BY_LIBYAML)
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        if isinstance(event, yaml.AliasEvent):
            raise GroupingError("The groups use aliases (`*name`)", where=str(path), remedy="Write every entry out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise GroupingError(f"The groups are nested deeper than {DEPTH} levels", where=str(path))
        if number >= limit:
            raise GroupingError(f"The groups have more than {limit:,} values", where=str(path), remedy=RAISE)


def _refuse_repeated_keys(document: Any, path: Path) -> None:
    import yaml

    nodes = [document]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for key, times in keys.items():
                if times > 1:
                    raise GroupingError(
                        f"There are {times} keys `{key}` where YAML keeps only the last",
                        where=f"{path}:{node.start_mark.line + 1}",
                        remedy="Write one; all use cases are entries of one list.",
                    )
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
