from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from lora_core.hub import PluginHub
from tests.hub.distributions import entry_points_of, install

GOOD = """
from lora_core.capability import Capability
from lora_core.hookspecs import hookimpl
from lora_core.specs import BackendSpec

@hookimpl
def lora_core_register_backends():
    return [BackendSpec(name="{name}", summary="made up", target="{module}_backend:Made",
                        options="{module}_options:Options", capabilities=frozenset({{Capability.EXPORT}}){more})]
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """An empty directory of distributions on the import path."""
    directory = tmp_path / "site"
    directory.mkdir()
    before = set(sys.modules)
    sys.path.insert(0, str(directory))
    yield directory
    sys.path.remove(str(directory))
    for name in set(sys.modules) - before:
        if str(directory) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def hub_of(site: Path) -> Callable[[Mapping[str, str]], PluginHub]:
    """Install one distribution for each given hooks module (`made-NAME`, plugin NAME) and make a hub of them."""

    def make(sources: Mapping[str, str]) -> PluginHub:
        for name, source in sources.items():
            install(site, f"made-{name}", {name: f"made_{name}"}, {f"made_{name}.py": source})
        return PluginHub(entry_points_of(site))

    return make


def good(name: str, *, module: str = "", more: str = "") -> str:
    """Return the source of a hooks module that registers backend `name`."""
    return GOOD.format(name=name, module=module or f"made_{name}", more=more)
