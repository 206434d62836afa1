"""Export options and session options of the backends in this repository."""

from __future__ import annotations

from typing import Any

import attrs

from lora_core.adapters.slots.kinds import kind_of
from lora_core.cli.option_fields import PREFIX, options_of
from refdocs.markdown import code, page, table
from refdocs.projects import hub
from refdocs.records import annotation, default


def options_page() -> str:
    """Return the page of the backends' options and what they declare."""
    parts = [
        'On the command line by option, from Python by field: `lora_core.export(..., options={"FIELD": value})`, '
        "and for a session `lora_core.open(bundle, options={...})`."
    ]
    for name, spec in hub().backends.items():
        capabilities = ", ".join(sorted(each.value for each in spec.capabilities))
        declared = [
            ["capabilities", capabilities],
            ["policies", ", ".join(map(code, spec.policies))],
            ["quantized embeddings", "with any policy (`--embedding`)" if spec.embeddings else "only as a policy says"],
            ["adapters may have", ", ".join(dict.fromkeys(kind_of(each).feature for each in spec.kinds))],
            ["names that adapters cannot have", _reserved(spec.reserved)],
            ["proven on", ", ".join(f"{each} {version}".strip() for each, version in spec.requires.items()) or "-"],
        ]
        session = hub().session_options_class(name)
        parts += [
            f"## {name}\n\n{spec.summary.rstrip('.')}.",
            table(["", ""], declared),
            f"### Export options of {name}\n\n{_options(hub().backend_options(name))}",
            f"### Session options of {name}\n\n{'None.' if session is None else _options(session)}",
        ]
    return page("Options of the backends", *parts)


def _reserved(reserved: Any) -> str:
    names = [code(each) for each in sorted(reserved.names)]
    names += [f"`{each}...`" for each in reserved.beginnings]
    names += [f"`...{each}`" for each in reserved.endings]
    return ", ".join(names) or "-"


def _options(cls: type[Any]) -> str:
    flags = {option.name: option for option in options_of(cls)}
    rows = []
    for field in attrs.fields(cls):
        option = flags.get(PREFIX + (field.alias or field.name))
        words = [] if option is None else [*option.opts, *option.secondary_opts]
        choices = ", ".join(code(str(each)) for each in field.metadata.get("choices", ()))
        text = field.metadata.get("help", "") + (f" Choices: {choices}." if choices else "")
        flag = " / ".join(map(code, words)) or "-"
        rows.append([flag, code(field.name), code(annotation(cls, field.name)), default(field), text])
    return table(["option", "field", "type", "default", "meaning"], rows) if rows else "None."
