"""What the distributions say of themselves agrees, and stands in one place."""

from __future__ import annotations

import sys
import tomllib
from importlib import import_module
from typing import Any

import pytest
from packaging.requirements import Requirement

import lora_core
from tests.packaging.distributions import ALL, CORE, PLAIN, PLUGINS, ROOT, Distribution, metadata, pins, requirements

each = pytest.mark.parametrize("distribution", ALL, ids=lambda distribution: distribution.name)


def pyproject(distribution: Distribution) -> dict[str, Any]:
    return tomllib.loads((distribution.directory / "pyproject.toml").read_text("utf-8"))


@each
def test_the_version_is_that_of_lora_core_and_written_nowhere_else(distribution: Distribution) -> None:
    assert metadata(distribution)["version"] == lora_core.__version__
    assert "version" not in pyproject(distribution)["project"]
    source = (distribution.directory / pyproject(distribution)["tool"]["hatch"]["version"]["path"]).resolve()
    assert source == CORE.package / "version.py"


def test_the_changelog_begins_with_the_version() -> None:
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines() if line.startswith("## ")]
    assert headings[0].split()[1] == lora_core.__version__


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_plugin_needs_lora_core_of_its_own_version(plugin: Distribution) -> None:
    assert metadata(plugin)["dependencies"].count(f"lora-core=={lora_core.__version__}") == 1


def test_the_example_accepts_this_lora_core() -> None:
    [core] = [line for line in metadata(PLAIN)["dependencies"] if Requirement(line).name == "lora-core"]
    assert Requirement(core).specifier.contains(lora_core.__version__)


def test_every_plugin_has_the_same_build_hook() -> None:
    hooks = {(plugin.directory / "hatch_build.py").read_text("utf-8") for plugin in PLUGINS}
    assert len(hooks) == 1


@each
def test_the_licence_is_the_repositorys(distribution: Distribution) -> None:
    assert pyproject(distribution)["project"]["license"] == "Apache-2.0"
    assert pyproject(distribution)["project"]["license-files"] == ["LICENSE"]
    assert (distribution.directory / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@each
def test_exact_requirements_are_the_pins_of_development(distribution: Distribution) -> None:
    exact = {
        requirement.name: str(requirement.specifier).removeprefix("==")
        for requirement in requirements(metadata(distribution))
        if str(requirement.specifier).startswith("==") and requirement.name != "lora-core"
    }
    runtime = pins("runtime.txt")
    assert exact == {name: runtime[name] for name in exact}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_backend_checks_for_what_its_distribution_requires(plugin: Distribution) -> None:
    declared = {Requirement(line).name: Requirement(line).specifier for line in metadata(plugin)["dependencies"]}
    for hooks in metadata(plugin)["entry-points"]["lora_core"].values():
        for spec in getattr(import_module(hooks), "lora_core_register_backends", list)():
            assert spec.install_hint == f"pip install {plugin.name}"
            assert spec.requires == {name: str(declared[name]).removeprefix("==") for name in spec.requires}


@each
def test_this_python_is_one_that_is_declared(distribution: Distribution) -> None:
    fields = metadata(distribution)
    assert f"Programming Language :: Python :: 3.{sys.version_info.minor}" in fields["classifiers"]
    assert fields["requires-python"] == ">=3.11"


@each
def test_typed_is_said_of_packages_with_types_only(distribution: Distribution) -> None:
    assert (distribution.package / "py.typed").exists() == ("Typing :: Typed" in metadata(distribution)["classifiers"])


def test_the_example_cannot_be_published() -> None:
    assert "Private :: Do Not Upload" in metadata(PLAIN)["classifiers"]


@each
def test_a_readme_of_its_own_introduces_it(distribution: Distribution) -> None:
    assert metadata(distribution)["readme"]["text"].startswith(f"# {distribution.name}\n")
