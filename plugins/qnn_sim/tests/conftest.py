from __future__ import annotations

import pytest

from lora_core.adapters.adapter import Adapter
from lora_core.bundle.bundle import Bundle
from lora_core.models.hf import HfModel
from plugins.qnn_sim.tests import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> HfModel:
    return tiny.open_model(tiny.write_checkpoint(tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture(scope="session")
def five(model: HfModel) -> tuple[Adapter, ...]:
    """The five adapters of the vendor's worked example."""
    return tuple(tiny.adapter(f"a{n}", model.summary, seed=n) for n in range(1, 6))


@pytest.fixture(scope="session")
def grouped(model: HfModel, five: tuple[Adapter, ...], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The worked example: {a1, a2}, {a3, a4}, {a5}."""
    job = tiny.make_job(model, five, group=("g1=a1,a2", "g2=a3,a4", "g3=a5"))
    return tiny.export(job, tmp_path_factory.mktemp("grouped") / "bundle")
