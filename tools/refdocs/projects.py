"""The plugins of this repository as installed ones, whatever else is installed."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from lora_core.hub import PluginHub

ROOT = Path(__file__).parents[2]


class Project(Distribution):
    """A project folder as the distribution that it becomes; without a version, which pages should not repeat."""

    def __init__(self, folder: Path) -> None:
        """Read the pyproject in `folder`."""
        self.folder = folder
        self.project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]

    def read_text(self, filename: str) -> str | None:
        """Return a metadata file."""
        if filename == "entry_points.txt":
            points = self.project.get("entry-points", {}).get("lora_core", {})
            return "[lora_core]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
        return f"Name: {self.project['name']}\nVersion: -\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        """Return where a file of the project lies."""
        return self.folder / path


@cache
def hub() -> PluginHub:
    """Return the hub of the plugins under `plugins/`, in the order of their names."""
    projects = [Project(path.parent) for path in sorted((ROOT / "plugins").glob("*/pyproject.toml"))]
    made = PluginHub([point for project in projects for point in project.entry_points])
    if made.faults:
        raise RuntimeError("; ".join(str(fault) for fault in made.faults))
    return made
