from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.cli.shell import Shell
from tests.hub.distributions import install_example


@pytest.fixture(scope="session")
def example_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the example plugin installed: backend `plain`, which exports and links in a blink."""
    return install_example(tmp_path_factory.mktemp("example") / "site")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, example_site: Path) -> Path:
    """A directory with a model, adapters `alice` and `bob`, and a bundle of the model with room for rank 4."""
    root = tmp_path_factory.mktemp("inputs") / "work"
    write_tiny_checkpoint(root / "model")
    write_tiny_adapter(root / "adapters" / "alice", seed=1)
    write_tiny_adapter(root / "adapters" / "bob", seed=2)
    export = ["export", "--backend", "plain", "--model", "model", "--adapter", "alice=adapters/alice", "-o", "bundle"]
    done = Shell(directory=root, sites=(example_site,)).run(*export)
    assert done.code == 0, done
    return root


@pytest.fixture
def shell(inputs: Path, example_site: Path, tmp_path: Path) -> Shell:
    """A shell in a directory with copies of the inputs, the example plugin installed."""
    directory = tmp_path / "work"
    shutil.copytree(inputs, directory)
    return Shell(directory=directory, sites=(example_site,))
