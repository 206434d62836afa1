"""The example backend that runs, and its mutants, as if they were installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from lora_core.hub import PluginHub
from tests.hub.distributions import entry_points_of, install

EXAMPLE = Path(__file__).parents[2] / "examples" / "runner_plugin"
HERE = Path(__file__).parent


@contextmanager
def importable() -> Iterator[None]:
    """Put example and mutants on the import path for as long as the block runs, also for processes that it starts."""
    paths = [str(EXAMPLE), str(HERE)]
    sys.path[:0] = paths
    try:
        yield
    finally:
        for path in paths:
            sys.path.remove(path)


def mutants() -> dict[str, Any]:
    """Return every mutant by the name of its backend."""
    with importable():
        import_module("tiny_mutants.hooks")
        found: dict[str, Any] = import_module("tiny_mutants.mutant").MUTANTS
    return found


def hub_in(site: Path) -> PluginHub:
    """Return a hub that finds the example and the mutants, and nothing else; `site` is an empty directory."""
    install(site, "lora-core-tiny", {"tiny": "lora_core_tiny.hooks"}, {})
    install(site, "lora-core-tiny-mutants", {"mutants": "tiny_mutants.hooks"}, {})
    return PluginHub(entry_points_of(site))
