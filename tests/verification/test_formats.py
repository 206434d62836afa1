"""Adapters of every format through a real bundle: the numbers of transformers and peft, and the bytes of an export."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.bundle.bundle import Bundle
from tests.adapters.gguf_cases import write_gguf
from tests.adapters.test_formats import write_mlx
from tests.adapters.trained_cases import TrainedCase, model_of, opened
from tests.verification.breaking import Sources, verify

PREFIX = "base_model.model."
FORMS = ("mlx", "gguf", "wrapped")
BACKENDS = {
    "xnnpack": {"max_context_len": 32, "max_seq_len": 16},
    "qnn_sim": {"context_len": 32, "input_len": 8},
    "coreml": {"max_context_len": 32, "input_len": 8},
}
HEADED = TrainedCase(
    name="plain",
    config={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj", "lm_head"]},
    model={"num_hidden_layers": 1},
    family="qwen2",
)


def pairs_in(adapter: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return A and B by module."""
    stored = load_file(adapter / "adapter_model.safetensors")
    names = sorted({key.removeprefix(PREFIX).partition(".lora_")[0] for key in stored})
    return {name: (stored[f"{PREFIX}{name}.lora_A.weight"], stored[f"{PREFIX}{name}.lora_B.weight"]) for name in names}


def other_form(form: str, adapter: Path, directory: Path, architecture: str) -> Path:
    """Write the PEFT `adapter`, whose scaling is 2 and rank is 4, in another form."""
    pairs = pairs_in(adapter)
    if form == "mlx":
        return write_mlx(directory / "mlx", pairs, lora_parameters={"rank": 4, "scale": 2.0})
    if form == "gguf":
        return write_gguf(directory / "a.gguf", pairs, alpha=8.0, architecture=architecture)
    wrapped = directory / "wrapped"
    wrapped.mkdir()
    stored = load_file(adapter / "adapter_model.safetensors")
    save_file({f"module.{key}": value for key, value in stored.items()}, wrapped / "adapter_model.safetensors")
    (wrapped / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    return wrapped


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_of_another_format_is_linked_as_peft_has_it(
    form: str, float32: Bundle, copy, sources: Sources, tmp_path: Path
) -> None:
    given = other_form(form, sources.adapters["alice"], tmp_path, "llama")
    bundle = lora_core.add(copy(float32), {"again": given})

    assert (bundle.path / "again.ptd").read_bytes() == (bundle.path / "alice.ptd").read_bytes()
    report = verify(bundle, sources, adapters={**sources.adapters, "again": given})
    assert report.passed, report.failures
    assert "peft" in report.reference


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_format_gives_the_numbers_of_peft_on_every_backend_with_the_output_head(
    backend: str, tied: bool, tmp_path: Path
) -> None:
    case = attrs.evolve(HEADED, model={**HEADED.model, "tie_word_embeddings": tied})
    model_of(case).save_pretrained(tmp_path / "model")
    opened(case, tmp_path / "plain")
    adapters = {form: other_form(form, tmp_path / "plain", tmp_path, "qwen2") for form in FORMS}
    adapters["plain"] = tmp_path / "plain"
    bundle = lora_core.export(
        tmp_path / "model",
        adapters={"plain": tmp_path / "plain"},
        backend=backend,
        out=tmp_path / "bundle",
        options=BACKENDS[backend],
    )

    linked = lora_core.add(bundle, {form: adapters[form] for form in FORMS})

    report = lora_core.verify(linked, tmp_path / "model", adapters=adapters, tokens=4)
    assert report.passed, report.failures
    assert "peft" in report.reference
    assert {each.method for each in report.methods if each.effect} == set(adapters)
