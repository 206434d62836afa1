"""A caller's own module on CoreML: called with the inputs that it takes, compared and measured with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError, UnsupportedError, UsageError
from lora_core.models.module import ModuleModel
from lora_core.runtime.bench import BenchSettings

WIDTH = 32
INPUTS = [(row[None],) for row in np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)]


class Scorer(torch.nn.Module):
    """No caches, no tokens, no metadata."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, 48)
        self.down = torch.nn.Linear(48, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.silu(self.up(x)))


def adapter(directory: Path) -> Path:
    directory.mkdir()
    random = np.random.default_rng(5)
    pair = {"A": (2, WIDTH), "B": (48, 2)}
    tensors = {
        f"base_model.model.up.lora_{name}.weight": random.standard_normal(shape).astype(np.float32) * 0.3
        for name, shape in pair.items()
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleModel, Path, Bundle]:
    """A module of given inputs, an adapter for it, and a bundle of both."""
    torch.manual_seed(1)
    root = tmp_path_factory.mktemp("module")
    model, directory = ModuleModel(module=Scorer(), example_args=(torch.zeros(1, WIDTH),)), adapter(root / "one")
    bundle = lora_core.export(model, adapters={"one": directory}, backend="coreml", out=root / "bundle")
    return model, directory, bundle


def test_a_module_of_given_inputs_is_compared_with_itself(made: tuple[ModuleModel, Path, Bundle]) -> None:
    model, directory, bundle = made
    report = lora_core.verify(bundle, model, adapters={"one": directory}, inputs=INPUTS)
    assert report.passed, report.failures
    assert {each.method for each in report.methods if each.numbers is not None} == {"forward", "one"}


def test_a_module_of_given_inputs_is_measured(made: tuple[ModuleModel, Path, Bundle]) -> None:
    *_, bundle = made
    report = lora_core.bench(bundle, inputs=INPUTS, settings=BenchSettings(decode_tokens=4, rounds=1))
    assert [each.adapter for each in report.methods] == [None, "one"]
    assert report.facts["given_inputs"] == 3


def test_inputs_of_another_shape_are_the_callers_error(made: tuple[ModuleModel, Path, Bundle]) -> None:
    *_, bundle = made
    with lora_core.open(bundle) as session:
        with pytest.raises(UsageError, match="inputs are not those of the module"):
            session.call(None, [np.zeros((1, WIDTH + 1), np.float32)])
        with pytest.raises(UnsupportedError, match="no tokens can be fed"):
            session.step(None, [1], 0)


def test_what_is_loaded_after_the_bundle_was_changed_is_refused(
    made: tuple[ModuleModel, Path, Bundle], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(made[2].path, tmp_path / "bundle"))
    with lora_core.open(path) as session:
        before = session.call(None, INPUTS[0])
        (path / "other").write_bytes((path / "model.pte").read_bytes())
        (path / "other").replace(path / "model.pte")
        with pytest.raises(BundleError, match="changed after it was opened"):
            session.call("one", INPUTS[0])
        assert np.array_equal(session.call(None, INPUTS[0]), before), "what was loaded before stays"
