"""Tiny models lowered once a run, for the tests of the XNNPACK plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lora_core_xnnpack.backend import XnnpackBackend
from workbench import Workbench

from lora_core.backend import Artifacts, ExportJob
from lora_core.events import ignore


@pytest.fixture(scope="session")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench.make(tmp_path_factory.mktemp("one-layer"), layers=1)


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench.make(tmp_path_factory.mktemp("two-layers"), layers=2)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ExportJob], tuple[Path, Artifacts]]:
    """Export a job into a directory of its own."""

    def export(job: ExportJob) -> tuple[Path, Artifacts]:
        out = tmp_path_factory.mktemp("export")
        return out, XnnpackBackend().export(job, out, ignore)

    return export
