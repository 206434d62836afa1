"""What is wrong with a job, said before any heavy work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from lora_core_xnnpack.checks import problems
from lora_core_xnnpack.options import XnnpackOptions
from workbench import POLICY_REGISTRY, Workbench

from lora_core.backend import ExportJob
from lora_core.models.hf import HfModelSource
from lora_core.quant.policies import parse_policy
from lora_core.testing.tiny import TINY_LLAMA, write_tiny_checkpoint


def job(bench: Workbench, policy: str, group_size: int) -> ExportJob:
    return attrs.evolve(bench.job([]), policy=parse_policy(policy, POLICY_REGISTRY, group_size=group_size))


@pytest.mark.parametrize(("policy", "size"), [("8da4w", 16), ("8da4w", 48), ("8da8w", 32), ("fp16", 32), ("c8w", 32)])
def test_groups_that_the_runtime_has_no_kernel_for_are_refused(one_layer: Workbench, policy: str, size: int):
    (problem, *_) = problems(job(one_layer, policy, size))
    assert f"-bit weights in groups of {size}" in problem.what


@pytest.mark.parametrize("size", [0, 32, 64, 128, 256])
def test_other_groups_are_not(one_layer: Workbench, size: int):
    assert problems(job(one_layer, "8da4w", size)) == []


def test_calibration_that_nothing_uses_is_refused(one_layer: Workbench):
    asked = one_layer.job([], policy="8da4w")
    options = attrs.evolve(asked.options, calibration="prompts.txt")
    (problem,) = problems(attrs.evolve(asked, options=options))
    assert "--calibration is for --rounding importance" in problem.what


def with_cache(asked: ExportJob, kind: str) -> ExportJob:
    return attrs.evolve(asked, options=attrs.evolve(asked.options, kv_cache=kind))


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_a_cache_of_fewer_bytes_is_for_attention_to_the_whole_context(tmp_path: Path, kind: str):
    family = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    write_tiny_checkpoint(tmp_path, config={**TINY_LLAMA, **family, "num_hidden_layers": 1})
    bench = Workbench(root=tmp_path, layers=1, checkpoint=tmp_path, handle=HfModelSource().open(str(tmp_path)))
    (problem,) = problems(with_cache(bench.job([]), kind))
    assert problem.what == (
        f"A KV cache in {kind} is read by attention to the whole context, and that of mistral ends after 16 tokens"
    )


def test_a_cache_of_fewer_bytes_is_not_for_a_callers_module(one_layer: Workbench):
    asked = one_layer.job([])
    summary = attrs.evolve(asked.model.summary, family="module")
    model: Any = SimpleNamespace(summary=summary, problems=lambda _options: ())
    (problem,) = problems(with_cache(attrs.evolve(asked, model=model), "int8"))
    assert problem.what.startswith("A KV cache in int8 is made for decoders as Llama is one, not for 'module'")
    assert problem.where == "--kv-cache"


def test_a_cache_of_fewer_bytes_is_for_a_llama(one_layer: Workbench):
    assert problems(with_cache(one_layer.job([]), "int8")) == []


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ({"max_context_len": 4}, "--max-context-len 4 is too short: a call takes up to 5 tokens or more"),
        ({"max_context_len": 32, "max_seq_len": 3}, "--max-seq-len 3 is too short: a call takes up to 5 tokens"),
        ({"max_context_len": 8, "max_seq_len": 16}, "--max-seq-len 16 is more than a context of 8"),
    ],
)
def test_lengths_that_nothing_can_be_lowered_for_are_refused(one_layer: Workbench, lengths: dict[str, int], said: str):
    asked = attrs.evolve(one_layer.job([]), options=XnnpackOptions(**lengths))
    (problem,) = problems(asked)
    assert problem.what.startswith(said)


def test_calls_are_as_long_as_the_context_unless_they_are_told(one_layer: Workbench):
    options = XnnpackOptions(max_context_len=24)
    assert problems(attrs.evolve(one_layer.job([]), options=options)) == []
    assert options.seq_len(None) == 24
