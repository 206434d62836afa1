"""The distributions of this repository, and what each says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import attrs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@attrs.frozen(kw_only=True)
class Distribution:
    """Distribution `name`, whose pyproject.toml lies in `directory` beside its one package."""

    name: str
    directory: Path

    @property
    def package(self) -> Path:
        """The directory of its package."""
        return self.directory / self.stem

    @property
    def stem(self) -> str:
        """Its name as packages and archives spell it."""
        return self.name.replace("-", "_")

    @property
    def files(self) -> set[str]:
        """Every file of its package, by path below `directory`."""
        found = (path for path in self.package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(self.directory).as_posix() for path in found}

    def wheel(self, built: Path) -> Path:
        """Return its wheel in the directory `built`."""
        [path] = built.glob(f"{self.stem}-*.whl")
        return path

    def sdist(self, built: Path) -> Path:
        """Return its sdist in the directory `built`."""
        [path] = built.glob(f"{self.stem}-*.tar.gz")
        return path


CORE = Distribution(name="lora-core", directory=ROOT)
XNNPACK = Distribution(name="lora-core-xnnpack", directory=ROOT / "plugins/xnnpack")
COREML = Distribution(name="lora-core-coreml", directory=ROOT / "plugins/coreml")
QNN_SIM = Distribution(name="lora-core-qnn-sim", directory=ROOT / "plugins/qnn_sim")
ONNX = Distribution(name="lora-core-onnx", directory=ROOT / "plugins/onnx")
RAY = Distribution(name="lora-core-ray", directory=ROOT / "plugins/ray")
TRANSFORMERS = Distribution(name="lora-core-transformers", directory=ROOT / "plugins/transformers")
PLAIN = Distribution(name="lora-core-plain", directory=ROOT / "examples/plugin")
PLUGINS = (XNNPACK, COREML, QNN_SIM, ONNX, RAY, TRANSFORMERS)
ALL = (CORE, *PLUGINS, PLAIN)


@cache
def metadata(distribution: Distribution) -> dict[str, Any]:
    """Return the fields of `project`, those that are computed too, as the build backend has them."""
    command = [sys.executable, "-m", "hatchling", "metadata"]
    ran = subprocess.run(command, cwd=distribution.directory, check=True, capture_output=True, text=True)
    fields: dict[str, Any] = json.loads(ran.stdout)
    return fields


def requirements(fields: dict[str, Any]) -> list[Requirement]:
    """Return the dependencies that metadata `fields` declare, and those of every extra."""
    extras = fields.get("optional-dependencies", {}).values()
    return [Requirement(line) for line in [*fields["dependencies"], *(line for extra in extras for line in extra)]]


def names(found: list[Requirement]) -> set[str]:
    """Return the distributions that requirements name, spelled as the package index does."""
    return {canonicalize_name(each.name) for each in found}


def pins(file: str) -> dict[str, str]:
    """Return the version of every distribution that `requirements/FILE` pins."""
    lines = (ROOT / "requirements" / file).read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}
