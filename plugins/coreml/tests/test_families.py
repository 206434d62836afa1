"""Bases that are no Llama: linked bytes are a full export's, and numbers are those of transformers and peft."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.lowering.base import model_options
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.quant import POLICIES

import lora_core
from lora_core.backend import ExportJob
from lora_core.models.hf import HfModelSource
from lora_core.testing.families import EXPORTED, write_family_adapter, write_tiny_family

FP16 = next(policy for policy in POLICIES if policy.name == "fp16")
OPTIONS = {"dtype": "fp32", "input_len": 4, "max_context_len": 12}


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.deep
@pytest.mark.parametrize("family", EXPORTED["coreml"][FP16.name])
def test_a_linked_bundle_is_that_of_a_full_export_and_computes_what_transformers_and_peft_do(
    tmp_path: Path, family: str
) -> None:
    base = write_tiny_family(tmp_path / "base", family)
    summary = HfModelSource().open(str(base)).summary
    adapters = {name: write_family_adapter(tmp_path / name, summary, seed=seed) for seed, name in enumerate("ab", 1)}
    made = {
        names: lora_core.export(
            base,
            adapters={name: adapters[name] for name in names},
            backend="coreml",
            out=tmp_path / f"out-{names}",
            options=OPTIONS,
            cache=tmp_path / "cache",
        )
        for names in ("ab", "a")
    }
    linked = lora_core.add(made["a"], {"b": adapters["b"]})
    assert files_of(linked.path) == files_of(made["ab"].path)
    report = lora_core.verify(made["ab"], base, adapters=adapters, tokens=3)
    assert report.passed, report


def job(base: Path, **options: object) -> ExportJob:
    model = HfModelSource().open(str(base))
    return ExportJob(
        model=model, adapters=(), plans=(), policy=FP16, options=CoremlOptions(**{"input_len": 4, **options})
    )


def test_the_context_ends_where_the_shortest_window_does(tmp_path: Path) -> None:
    base = write_tiny_family(tmp_path / "base", "gemma3")
    assert CoremlBackend().check(job(base)) == []
    (problem,) = CoremlBackend().check(job(base, max_context_len=13))
    assert str(problem).startswith(
        "--max-context-len 13 is more than the base's sliding attention window of 12 tokens."
    )


def test_a_context_that_is_not_given_is_one_that_can_be_built(tmp_path: Path) -> None:
    asked = job(write_tiny_family(tmp_path / "base", "gemma3"))
    assert model_options(asked).max_context_len == 12
    assert asked.model.outline(model_options(asked)) is not None


def test_a_base_with_the_gated_delta_rule_is_refused(tmp_path: Path) -> None:
    (problem,) = CoremlBackend().check(job(write_tiny_family(tmp_path / "base", "qwen3_5")))
    assert "for the state that layers of qwen3_5 keep" in problem.what
