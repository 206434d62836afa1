"""`lora-core backends`: what is installed (backends, adapter formats), and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_core.cli.command import Command
from lora_core.cli.table import table

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core.hub import PluginHub


def backends(console: Console, *, as_json: bool) -> None:
    """Print every backend with its capabilities and policies, every adapter format, then every problem of a plugin."""
    facts = _facts(console.hub)
    if as_json:
        console.json(facts)
        return
    rows = [
        [
            row["name"],
            row["distribution"],
            ", ".join(row["capabilities"]),
            ", ".join(row["policies"]),
            "incomplete" if row["missing"] else "ready",
        ]
        for row in facts["backends"]
    ]
    console.result(table(["backend", "distribution", "can", "policies", "state"], rows) if rows else "No backends.")
    formats = [[each["name"], each["distribution"], each["summary"]] for each in facts["adapter_formats"]]
    console.result(f"\n{table(['adapter format', 'distribution', 'summary'], formats)}")
    problems = [*(what for row in facts["backends"] for what in row["missing"]), *facts["problems"]]
    if problems:
        console.result("\nProblems:")
        for problem in problems:
            console.result(f"  - {problem}")


def _facts(hub: PluginHub) -> dict[str, Any]:
    return {
        "backends": [
            {
                "name": name,
                "summary": spec.summary,
                "distribution": hub.backends.entry(name).origin.distribution,
                "capabilities": sorted(capability.value for capability in spec.capabilities),
                "policies": list(spec.policies),
                "missing": [str(problem) for problem in hub.missing(name)],
            }
            for name, spec in hub.backends.items()
        ],
        "adapter_formats": [
            {"name": name, "summary": spec.summary, "distribution": hub.adapter_formats.entry(name).origin.distribution}
            for name, spec in hub.adapter_formats.items()
        ],
        "problems": [str(fault) for fault in hub.faults],
    }


command = Command(
    "backends",
    callback=backends,
    help="List the installed backends and adapter formats, and every plugin that is broken.",
    params=[click.Option(["--json", "as_json"], is_flag=True, help="Print JSON.")],
)
