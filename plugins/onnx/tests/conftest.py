"""Tiny models as transformers saves them, adapters as peft saves them, and bundles made from them once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lora_core
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.models.conftest import tiny

__all__ = ["tiny"]
# ONNX Runtime and its GenAI would tell their maker of every session that a test opens.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONTEXT = 32


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a tiny checkpoint as `model`, and adapters of unlike ranks and targets."""
    root = tmp_path_factory.mktemp("sources")
    return {
        "model": write_tiny_checkpoint(root / "model"),
        "alice": write_tiny_adapter(root / "alice", seed=1, targets=LINEARS),
        "bob": write_tiny_adapter(root / "bob", seed=2, rank=3, targets=("q_proj", "down_proj")),
    }


@pytest.fixture(scope="session")
def bundle(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a float32 bundle with `alice` exported and `bob` added; tests do not change it."""
    out = tmp_path_factory.mktemp("bundles") / "fp32"
    options = {"max_context_len": CONTEXT}
    lora_core.export(sources["model"], adapters={"alice": sources["alice"]}, backend="onnx", out=out, options=options)
    lora_core.add(out, {"bob": sources["bob"]})
    return out


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SimpleNamespace]:
    """Return a maker of adapters for a base: `.directory` as peft saves it, `.reference`, what peft computes."""
    import peft
    import torch
    import transformers

    def make(base_directory: Path, **config: Any) -> SimpleNamespace:
        base = transformers.AutoModelForCausalLM.from_pretrained(base_directory, dtype=torch.float32)
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **config))
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        directory = tmp_path_factory.mktemp("peft") / "adapter"
        model.save_pretrained(directory)
        return SimpleNamespace(directory=directory, reference=model.eval().requires_grad_(False))

    return make
