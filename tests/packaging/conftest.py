from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from lora_core import __version__
from tests.packaging.distributions import Distribution
from tests.packaging.environment import Environment, make_environment
from tests.packaging.make import make


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archives that `make dist` makes, which has checked them."""
    directory = tmp_path_factory.mktemp("built") / "dist"
    # `-o`: these tests run in the environment that is asked for, so there is nothing to set up.
    places = [f"BIN={Path(sys.executable).parent}", f"DIST={directory}", "-o", f".venv/.installed-{__version__}"]
    ran = make("dist", *places)
    if ran.returncode != 0:
        raise RuntimeError(f"{ran.stdout}{ran.stderr}")
    return directory


@pytest.fixture(scope="session", params=os.environ.get("PACKAGING_PYTHONS", "").split() or [sys.executable])
def installed(
    request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Distribution], Environment]:
    """Return a function that gives the environment of a distribution, made once for every Python.

    The environment variable PACKAGING_PYTHONS lists the interpreters to use instead of the one of the tests.
    """

    @cache
    def environment(distribution: Distribution) -> Environment:
        directory = tmp_path_factory.mktemp(distribution.name) / "venv"
        return make_environment(directory, request.param, distribution, built)

    return environment
