"""Adapters of every format through a real bundle: the numbers of transformers and peft, and the bytes of an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.bundle.bundle import Bundle
from tests.adapters.gguf_cases import write_gguf
from tests.adapters.test_formats import write_mlx
from tests.verification.breaking import Sources, verify

PREFIX = "base_model.model."


@pytest.fixture
def pairs(sources: Sources) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of alice, whose scaling is 2, by module."""
    stored = load_file(sources.adapters["alice"] / "adapter_model.safetensors")
    names = sorted({key.removeprefix(PREFIX).partition(".lora_")[0] for key in stored})
    return {name: (stored[f"{PREFIX}{name}.lora_A.weight"], stored[f"{PREFIX}{name}.lora_B.weight"]) for name in names}


def other_form(form: str, sources: Sources, pairs: dict[str, tuple[np.ndarray, np.ndarray]], directory: Path) -> Path:
    if form == "mlx":
        return write_mlx(directory / "mlx", pairs, lora_parameters={"rank": 4, "scale": 2.0})
    if form == "gguf":
        return write_gguf(directory / "a.gguf", pairs, alpha=8.0)
    wrapped = directory / "wrapped"
    wrapped.mkdir()
    stored = load_file(sources.adapters["alice"] / "adapter_model.safetensors")
    save_file({f"module.{key}": value for key, value in stored.items()}, wrapped / "adapter_model.safetensors")
    config = (sources.adapters["alice"] / "adapter_config.json").read_bytes()
    (wrapped / "adapter_config.json").write_bytes(config)
    return wrapped


@pytest.mark.parametrize("form", ["mlx", "gguf", "wrapped"])
def test_an_adapter_of_another_format_is_linked_as_peft_has_it(
    form: str, float32: Bundle, copy, sources: Sources, pairs, tmp_path: Path
) -> None:
    given = other_form(form, sources, pairs, tmp_path)
    bundle = lora_core.add(copy(float32), {"again": given})

    assert (bundle.path / "again.ptd").read_bytes() == (bundle.path / "alice.ptd").read_bytes()
    report = verify(bundle, sources, adapters={**sources.adapters, "again": given})
    assert report.passed, report.failures
    assert "peft" in report.reference
