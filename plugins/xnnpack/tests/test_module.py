"""A caller's own module: its parameters may be called anything, and what cannot be traced is its own error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lora_core_xnnpack.artifacts import FOUNDATION_FILE
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.marks import MARKS
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.errors import ModelError, UsageError
from lora_core.models.module import ModuleModel
from lora_core.runtime.bench import BenchSettings
from lora_core.testing.tiny import TINY_LLAMA, write_tiny_adapter

WIDTH = TINY_LLAMA["hidden_size"]


class Block(torch.nn.Module):
    """A module whose own layers are called as LoRA's matrices are."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_a = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.q_proj = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_proj(torch.relu(self.lora_a(x)))


class Branching(Block):
    """A module that `torch.export` cannot trace."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else x


def handle(module: torch.nn.Module) -> ModuleModel:
    return ModuleModel(module=module.eval(), example_args=(torch.ones(1, WIDTH),), name="block")


def adapter(directory: Path) -> Path:
    """Write an adapter for `q_proj`, under the name that the module gives it."""
    write_tiny_adapter(directory, seed=1, targets=("q_proj",), config={**TINY_LLAMA, "num_hidden_layers": 1})
    file = directory / "adapter_model.safetensors"
    save_file({name.replace("model.layers.0.self_attn.", ""): each for name, each in load_file(file).items()}, file)
    return directory


def test_a_base_parameter_called_lora_a_stays_the_bases(tmp_path: Path) -> None:
    bundle = lora_core.export(
        handle(Block()), adapters={"one": adapter(tmp_path / "one")}, backend="xnnpack", out=tmp_path / "bundle"
    )
    foundation = bundle.path / FOUNDATION_FILE
    stored = [blob for blob in stored_blobs(foundation.read_bytes(), foundation) if blob.key not in MARKS]
    assert [blob.size for blob in stored] == [4 * WIDTH * WIDTH] * 2
    assert lora_core.inspect(bundle).passed


def test_a_module_that_cannot_be_traced_is_the_models_error_with_torchs_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"torch\.export cannot trace model 'block'"):
        lora_core.export(handle(Branching()), backend="xnnpack", out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleModel, Path, Bundle]:
    """A module of given inputs, an adapter for it, and a bundle of both."""
    torch.manual_seed(1)
    root = tmp_path_factory.mktemp("module")
    model, directory = handle(Block()), adapter(root / "one")
    return (
        model,
        directory,
        lora_core.export(model, adapters={"one": directory}, backend="xnnpack", out=root / "bundle"),
    )


INPUTS = [(row[None],) for row in np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)]


def test_a_module_of_given_inputs_is_compared_with_itself(made: tuple[ModuleModel, Path, Bundle]) -> None:
    model, directory, bundle = made
    report = lora_core.verify(bundle, model, adapters={"one": directory}, inputs=INPUTS)
    assert report.passed, report.failures
    assert {each.method for each in report.methods if each.numbers is not None} == {"forward", "one"}
    assert {each.check for each in report.unchecked} == {"kv-cache"}


def test_another_module_is_found_by_its_weights(made: tuple[ModuleModel, Path, Bundle]) -> None:
    _, directory, bundle = made
    report = lora_core.verify(bundle, handle(Block()), adapters={"one": directory}, inputs=INPUTS)
    assert ("model", "bundle") in {(each.check, each.subject) for each in report.failures}


def test_without_inputs_a_modules_files_are_checked_and_its_numbers_are_not(
    made: tuple[ModuleModel, Path, Bundle],
) -> None:
    model, directory, bundle = made
    report = lora_core.verify(bundle, model, adapters={"one": directory})
    assert report.passed
    assert not report.ran
    assert {"hashes", "foundation", "sharing", "precision"} <= {each.check for each in report.findings}
    assert any("inputs=" in each.detail for each in report.unchecked)


def test_a_module_of_given_inputs_is_measured(made: tuple[ModuleModel, Path, Bundle]) -> None:
    *_, bundle = made
    report = lora_core.bench(bundle, inputs=INPUTS, settings=BenchSettings(decode_tokens=4, rounds=1))
    assert [each.adapter for each in report.methods] == [None, "one"]
    assert report.facts["given_inputs"] == 3


def test_inputs_of_another_shape_are_the_callers_error(made: tuple[ModuleModel, Path, Bundle]) -> None:
    *_, bundle = made
    with lora_core.open(bundle) as session, pytest.raises(UsageError, match="inputs are not those of the module"):
        session.call(None, [np.zeros((1, WIDTH + 1), np.float32)])
