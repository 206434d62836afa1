"""Which bases the graph is built for: what is more than Llama is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_core
from lora_core.errors import UnsupportedError
from lora_core.testing.families import TINY_FAMILIES, write_tiny_family

LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
LACKS = {
    "gemma": "no gelu tanh activation, no multipliers",
    "gemma2": "no soft caps",
    "gemma3": "no rotary embeddings of two kinds",
    "gemma4": "no embeddings for each layer",
    "qwen3_moe": "no experts",
    "phi3": "no fused layers",
    "smollm3": "no layers without positions",
    "granite": "no multipliers",
    "olmo2": "no norms after attention and MLP",
    "qwen3_5": "no gated queries",
    "lfm2": "no convolutions",
}


def test_every_family_is_built_or_refused_here() -> None:
    assert {*LLAMAS, *LACKS} == set(TINY_FAMILIES)


@pytest.mark.parametrize("family", LLAMAS)
def test_a_family_that_is_a_llama_is_built(tmp_path: Path, family: str) -> None:
    model = write_tiny_family(tmp_path / "model", family)
    lora_core.export(model, backend="onnx", out=tmp_path / "out", options={"max_context_len": 12})
    with lora_core.open(tmp_path / "out") as session:
        assert session.step(None, [1, 2, 3], 0).std() > 0


@pytest.mark.parametrize("family", LACKS)
def test_a_family_that_is_no_llama_is_refused_with_what_the_graph_lacks(tmp_path: Path, family: str) -> None:
    model = write_tiny_family(tmp_path / "model", family)
    with pytest.raises(UnsupportedError) as refused:
        lora_core.export(model, backend="onnx", out=tmp_path / "out", options={"max_context_len": 12})
    (problem,) = refused.value.problems
    assert problem.what.startswith("The ONNX model has no ")
    assert LACKS[family] in problem.what
    assert problem.what.endswith(f", which {family} needs")
    assert not (tmp_path / "out").exists()
