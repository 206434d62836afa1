"""Tiny models lowered once a run, for the tests of the XNNPACK plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Workbench

from lora_core.backend import Artifacts, ExportJob
from lora_core.events import ignore
from lora_core.models.hf import HfModelSource
from lora_core.testing.tiny import write_tiny_checkpoint
from lora_core_xnnpack.backend import XnnpackBackend


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    root = tmp_path_factory.mktemp("tiny")
    return Workbench(root=root, handle=HfModelSource().open(str(write_tiny_checkpoint(root / "model"))))


@pytest.fixture(scope="session")
def exported(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Artifacts]]:
    """Export a job into a directory of its own."""

    def export(job: ExportJob) -> tuple[Path, Artifacts]:
        out = tmp_path_factory.mktemp("export")
        return out, XnnpackBackend().export(job, out, ignore)

    return export
