"""`lora-core doctor`: what works on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_core.cli.command import Command
from lora_core.errors import ExitCode, LoraCoreError

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core.hub import PluginHub


def doctor(console: Console, *, as_json: bool) -> ExitCode:
    """Print facts and problems; the exit code says whether a backend works (4) and no plugin is broken (6)."""
    facts: dict[str, Any] = {
        "machine": _machine(),
        "backends": {name: _backend(console.hub, name) for name in console.hub.backends},
        "adapter_formats": {
            name: console.hub.adapter_formats.entry(name).origin.distribution for name in console.hub.adapter_formats
        },
        "plugins": [str(fault) for fault in console.hub.faults],
    }
    if as_json:
        console.json(facts)
    else:
        for line in _lines(facts):
            console.result(line)
    if facts["plugins"]:
        return ExitCode.PLUGIN
    works = any(not backend["problems"] for backend in facts["backends"].values())
    return ExitCode.OK if works else ExitCode.UNSUPPORTED


def _machine() -> dict[str, str]:
    import os
    import platform
    import tempfile

    from lora_core.version import __version__

    return {
        "lora-core": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": str(os.cpu_count()),
        "temporary files": tempfile.gettempdir(),
    }


def _backend(hub: PluginHub, name: str) -> dict[str, Any]:
    try:
        diagnosis = hub.backend(name).diagnose()
    except LoraCoreError as error:
        return {"facts": {}, "problems": [str(problem) for problem in error.problems]}
    return {"facts": dict(diagnosis.facts), "problems": [str(problem) for problem in diagnosis.problems]}


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"{name}: {value}" for name, value in facts["machine"].items()]
    for name, backend in facts["backends"].items():
        lines += ["", f"{name}: {'has problems' if backend['problems'] else 'works'}"]
        lines += [f"  {fact}: {value}" for fact, value in backend["facts"].items()]
        lines += [f"  problem: {problem}" for problem in backend["problems"]]
    formats = [f"{name} ({distribution})" for name, distribution in facts["adapter_formats"].items()]
    lines += ["", f"adapter formats: {', '.join(formats)}"]
    if facts["plugins"]:
        lines += ["", "broken plugins:", *(f"  {fault}" for fault in facts["plugins"])]
    return lines


command = Command(
    "doctor",
    callback=doctor,
    help="Say what works on this machine and what is missing.",
    params=[click.Option(["--json", "as_json"], is_flag=True, help="Print JSON.")],
)
