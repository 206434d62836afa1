"""Adapters fitted to a rounded base, from the command to the logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_core_onnx.graph.weights import quantize
from lora_core_onnx.options import OnnxOptions

import lora_core
from lora_core.adapters.reference import AdapterReference, CompositePart
from lora_core.backend import ExportJob
from lora_core.errors import AdapterError, ModelError, PolicyError, UsageError
from lora_core.events import ignore
from lora_core.hub import PluginHub
from lora_core.models.hf import HfModelSource
from lora_core.testing.tiny import write_tiny_checkpoint

OPTIONS = {"max_context_len": 32}
TEXT = [7, 99, 3, 41, 18, 60, 5, 5, 77, 12, 30, 8]


@pytest.fixture(scope="module")
def base(tiny: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return tiny("llama3.2-scaled-rope-tied", head_dim=16)


@pytest.fixture(scope="module")
def adapter(base: SimpleNamespace, trained: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """Return an adapter as peft saves it, and what peft computes with it in full precision."""
    return trained(base.directory, r=5, lora_alpha=1, target_modules="all-linear")


@pytest.fixture(scope="module")
def rounded(base: SimpleNamespace, adapter: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the base in 4 bits, with the adapter as it is; tests copy what they change."""
    out = tmp_path_factory.mktemp("rounded") / "bundle"
    given = {"plain": adapter.directory}
    lora_core.export(base.directory, adapters=given, backend="onnx", policy="4w", out=out, options=OPTIONS)
    return out


@pytest.fixture(scope="module")
def fitted(
    base: SimpleNamespace, adapter: SimpleNamespace, rounded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "adapter"
    lora_core.fit_adapter(rounded, adapter.directory, base.directory, out=out)
    return out


@pytest.fixture(scope="module")
def both(rounded: Path, fitted: Path) -> Path:
    """Return the bundle with the fitted adapter added."""
    lora_core.add(rounded, {"fitted": fitted})
    return rounded


def logits(bundle: Path, name: str | None) -> np.ndarray:
    with lora_core.open(bundle) as session:
        return np.stack([session.step(name, [token], at) for at, token in enumerate(TEXT)])


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_the_fitted_adapter_is_nearer_to_what_peft_computes_in_full_precision(
    both: Path, adapter: SimpleNamespace
) -> None:
    wanted = adapter.reference(torch.tensor([TEXT])).logits[0].numpy()
    plain, made = (np.square(logits(both, name) - wanted).mean() for name in ("plain", "fitted"))
    assert made < 0.9 * plain


def test_a_larger_rank_makes_up_for_more(
    base: SimpleNamespace, adapter: SimpleNamespace, rounded: Path, fitted: Path, tmp_path: Path
) -> None:
    own = lora_core.fit_adapter(rounded, adapter.directory, base.directory, out=tmp_path / "own")
    more = lora_core.fit_adapter(rounded, adapter.directory, base.directory, out=tmp_path / "more", rank=20)
    assert more.after < 0.8 * own.after < 0.8 * own.before
    assert files(tmp_path / "own") == files(fitted)  # the same inputs, the same bytes


def test_adding_a_fitted_adapter_gives_the_bytes_of_an_export_with_it(
    base: SimpleNamespace, adapter: SimpleNamespace, both: Path, fitted: Path, tmp_path: Path
) -> None:
    given = {"plain": adapter.directory, "fitted": fitted}
    lora_core.export(base.directory, adapters=given, backend="onnx", policy="4w", out=tmp_path / "out", options=OPTIONS)
    assert files(tmp_path / "out") == files(both)


def test_verify_compares_with_the_adapter_that_was_fitted(
    base: SimpleNamespace, adapter: SimpleNamespace, both: Path, fitted: Path
) -> None:
    report = lora_core.verify(both, base.directory, adapters={"plain": adapter.directory, "fitted": fitted}, tokens=4)
    found = {each.adapter: each.numbers for each in report.methods if each.numbers is not None}
    assert not report.failures
    assert found["fitted"].kl < found["plain"].kl


def test_another_base_refuses_it_added_or_exported(base: SimpleNamespace, fitted: Path, tmp_path: Path) -> None:
    told = "makes up for the rounding of foundation .* it would add errors instead"
    with pytest.raises(AdapterError, match=told):
        lora_core.export(base.directory, adapters={"f": fitted}, backend="onnx", out=tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out").exists()
    lora_core.export(base.directory, backend="onnx", out=tmp_path / "fp32", options=OPTIONS)
    with pytest.raises(AdapterError, match=told):
        lora_core.add(tmp_path / "fp32", {"f": fitted})
    with pytest.raises(AdapterError, match=told):
        lora_core.pack(tmp_path / "fp32", AdapterReference(name="f", directory=fitted), out=tmp_path / "f.lora")
    (entry,) = lora_core.catalogue(fitted, bundles=[tmp_path / "fp32"])
    assert "would add errors" in entry.fits[0].problems[0].what


def test_it_has_one_strength(both: Path, fitted: Path) -> None:
    with pytest.raises(AdapterError, match=r"cannot have strength 0\.5"):
        lora_core.add(both, [AdapterReference(name="half", directory=fitted, strength=0.5)])
    parts = (CompositePart(of=str(fitted), strength=0.5), CompositePart(of=str(fitted / "original"), strength=0.5))
    with pytest.raises(AdapterError, match="cannot be part of a composite"):
        lora_core.add(both, [AdapterReference(name="mix", parts=parts)])


def test_converting_keeps_the_mark(fitted: Path, base: SimpleNamespace, tmp_path: Path) -> None:
    converted = lora_core.convert(fitted, tmp_path / "converted", model=base.directory)
    assert converted.fitted_for is not None
    assert (tmp_path / "converted/adapter_model.safetensors").read_bytes() == (
        fitted / "adapter_model.safetensors"
    ).read_bytes()


def test_a_strength_and_a_composite_are_fitted_as_one_adapter(
    base: SimpleNamespace, adapter: SimpleNamespace, rounded: Path, tmp_path: Path
) -> None:
    reference = AdapterReference(name="half", directory=adapter.directory, strength=0.5)
    made = lora_core.fit_adapter(rounded, reference, base.directory, out=tmp_path / "half")
    assert made.adapter.fitted_for is not None
    config = json.loads((tmp_path / "half/original/adapter_config.json").read_text())
    assert config["lora_alpha"] == 0.5  # half of what it was trained with


def test_files_about_text_come_with_it(
    base: SimpleNamespace, adapter: SimpleNamespace, rounded: Path, tmp_path: Path
) -> None:
    import shutil

    spoken = Path(shutil.copytree(adapter.directory, tmp_path / "spoken"))
    (spoken / "chat_template.jinja").write_text("{{ messages[0].content }}")
    lora_core.fit_adapter(rounded, spoken, base.directory, out=tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_what_cannot_be_fitted_is_refused_and_nothing_written(
    base: SimpleNamespace, adapter: SimpleNamespace, rounded: Path, fitted: Path, bundle: Path, sources, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(AdapterError, match=r"was fitted already.* its directory 'original'"):
        lora_core.fit_adapter(rounded, fitted, base.directory, out=out)
    with pytest.raises(ModelError, match="not the model that the bundle was exported from"):
        lora_core.fit_adapter(rounded, adapter.directory, sources["model"], out=out)
    with pytest.raises(PolicyError, match="'fp32' rounds no linear layer"):
        lora_core.fit_adapter(bundle, sources["alice"], sources["model"], out=out)
    with pytest.raises(UsageError, match="at least 1, not 0"):
        lora_core.fit_adapter(rounded, adapter.directory, base.directory, out=out, rank=0)
    with pytest.raises(UsageError, match="There is something at"):
        lora_core.fit_adapter(rounded, adapter.directory, base.directory, out=fitted)
    assert not out.exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_tells_the_integers_that_are_stored(tmp_path: Path, bits: int) -> None:
    model = HfModelSource().open(str(write_tiny_checkpoint(tmp_path / "model")))
    policy = PluginHub().policies[f"{bits}w"]
    job = ExportJob(model=model, adapters=(), plans=(), policy=policy, options=OnnxOptions())
    layer = model.summary.layer("model.layers.0.mlp.down_proj")
    weight = model.tensors()[f"{layer.name}.weight"].read()
    found = PluginHub().backend("onnx").rounding(job, tmp_path, ignore)(layer, weight)
    packed, scales = quantize(found, bits, 32)
    expected, _ = quantize(weight, bits, 32)
    steps = np.abs(found - weight).reshape(*scales.shape, 32) / np.abs(scales[..., None])
    assert np.array_equal(packed, expected)  # what is on the grid stays where it is
    assert steps.max() <= 1.01  # a value at the end of the grid may be cut by a step


def test_the_command_says_how_to_go_on(
    base: SimpleNamespace, adapter: SimpleNamespace, rounded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from lora_core.cli.main import main

    words = [rounded, f"own={adapter.directory}", "--model", base.directory, "-o", tmp_path / "own"]
    assert main(["fit-adapter", *map(str, words)]) == 0
    assert f"lora-core add {rounded} --adapter own={tmp_path / 'own'}" in capfd.readouterr().out

    beside = Path(shutil.copytree(rounded, tmp_path / "beside"))
    lora_core.add(beside, {"own": adapter.directory})
    assert main(["fit-adapter", *map(str, (beside, *words[1:])), "--force"]) == 0
    assert f"lora-core add {beside} --adapter own_fitted={tmp_path / 'own'}" in capfd.readouterr().out
