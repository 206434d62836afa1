"""Distributions made up on disk, as `pip install` would leave them: a package and its dist-info."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, MetadataPathFinder
from pathlib import Path

from lora_core import __version__

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"


def install(
    site: Path, name: str, entry_points: Mapping[str, str], modules: Mapping[str, str], *, version: str = "1.0"
) -> Path:
    """Install distribution `name` into directory `site`: `modules` are sources by file name, `entry_points` ours."""
    site.mkdir(parents=True, exist_ok=True)
    for file, source in modules.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(source, encoding="utf-8")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = "".join(f"{point} = {target}\n" for point, target in entry_points.items())
    (info / "entry_points.txt").write_text(f"[lora_core]\n{lines}", encoding="utf-8")
    return site


def install_example(site: Path) -> Path:
    """Install `examples/plugin` into directory `site`, by what its pyproject says, in lora-core's version."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(site, project["name"], project["entry-points"]["lora_core"], {}, version=__version__)
    shutil.copytree(EXAMPLE / "lora_core_plain", site / "lora_core_plain", ignore=shutil.ignore_patterns("__pycache__"))
    return site


def entry_points_of(*sites: Path) -> list[EntryPoint]:
    """Return the entry points of the distributions in `sites`, and of no others."""
    context = MetadataPathFinder.Context(path=[str(site) for site in sites])
    found = [point for each in MetadataPathFinder.find_distributions(context) for point in each.entry_points]
    return [point for point in found if point.group == "lora_core"]
