"""Tiny models lowered once a run, for the tests of the XNNPACK plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from device_linker import DeviceLinker
from lora_core_xnnpack.backend import XnnpackBackend
from toolchain import built, compilers, library_sources
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


@pytest.fixture(scope="session")
def linker() -> DeviceLinker:
    """The device linker, by the first compiler that is there."""
    found = compilers()
    if not found:
        pytest.skip("there is no C++ compiler (g++ or clang++) on this machine, so native/ is not tested")
    flags = ("-O1", "-fPIC", "-shared", "-fvisibility=hidden")
    return DeviceLinker(built(found[0], "liblora_core_link.so", flags, library_sources()))
