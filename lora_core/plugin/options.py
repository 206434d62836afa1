"""Make a backend's options from values by field name, reporting everything that is wrong with them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from lora_core.errors import LoraCoreError, PluginError, Problem, UsageError
from lora_core.suggestions import did_you_mean


def build(cls: type[Any], whose: str, values: Mapping[str, Any]) -> Any:
    """Return an instance of the attrs class `cls` with `values`; fields left out keep their defaults.

    `whose` begins the messages ("Backend 'coreml'").
    Raises `UsageError` for unknown names and for values that the class refuses.
    """
    if not attrs.has(cls):
        raise PluginError(f"The options are not an attrs class. ({whose})")
    fields = [field.alias for field in attrs.fields(cls) if field.init]
    problems = [
        Problem(what=f"{whose} has no option {name!r}", remedy=did_you_mean(name, fields))
        for name in values
        if name not in fields
    ]
    known = {name: value for name, value in values.items() if name in fields}
    refused = [problem for name, value in known.items() for problem in _refusals(cls, whose, {name: value})]
    # Each value alone first: attrs stops at the first one it refuses. Then all, for rules between them.
    problems += refused or _refusals(cls, whose, known)
    if problems:
        raise UsageError(problems)
    return cls(**known)


def _refusals(cls: type[Any], whose: str, values: Mapping[str, Any]) -> list[Problem]:
    try:
        cls(**values)
    except LoraCoreError as error:
        return list(error.problems)
    except (TypeError, ValueError) as error:
        # attrs' own validators put the attribute and the value behind the message.
        what = f"{whose} refuses {', '.join(values) or 'its defaults'}: {error.args[0] if error.args else ''}"
        return [Problem(what=what)]
    return []
