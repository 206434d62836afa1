"""Two real bundles, in float32 and in 8 bits, exported once, and copies of them to break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.verification.breaking import Sources

OPTIONS = {"max_context_len": 32, "max_seq_len": 16}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A tiny model and two adapters of it."""
    root = tmp_path_factory.mktemp("sources")
    return Sources(
        model=write_tiny_checkpoint(root / "model"),
        adapters={
            "alice": write_tiny_adapter(root / "alice", seed=1),
            "bob": write_tiny_adapter(root / "bob", seed=2, targets=("q_proj", "down_proj")),
        },
    )


def export(sources: Sources, out: Path, policy: str, cache: Path) -> Bundle:
    return lora_core.export(
        sources.model,
        adapters=sources.adapters,
        backend="xnnpack",
        policy=policy,
        out=out,
        options=OPTIONS,
        max_rank=8,  # room for a composite of both
        cache=cache,
    )


@pytest.fixture(scope="session")
def float32(sources: Sources, tmp_path_factory: pytest.TempPathFactory, lowered_once: Path) -> Bundle:
    return export(sources, tmp_path_factory.mktemp("float32") / "bundle", "fp32", lowered_once)


@pytest.fixture(scope="session")
def int8(sources: Sources, tmp_path_factory: pytest.TempPathFactory, lowered_once: Path) -> Bundle:
    return export(sources, tmp_path_factory.mktemp("int8") / "bundle", "8da8w", lowered_once)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Bundle], Bundle]:
    """Return a function that copies a bundle, so that a test can break it."""

    def make(bundle: Bundle) -> Bundle:
        path = shutil.copytree(bundle.path, tmp_path / "copy")
        return Bundle(path=Path(path), manifest=bundle.manifest)

    return make
