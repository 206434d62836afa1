"""What the page of families says was exported is what its backend accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
from refdocs.families import WINDOW, answer
from refdocs.projects import hub

from lora_core.backend import ExportJob
from lora_core.models.hf import HfModelSource
from lora_core.testing.families import EXPORTED, write_tiny_family


@pytest.mark.parametrize(
    ("backend", "policy"), [(backend, policy) for backend, policies in EXPORTED.items() for policy in policies]
)
def test_families_that_are_exported_are_accepted(tmp_path: Path, backend: str, policy: str) -> None:
    directories = {
        family: write_tiny_family(tmp_path / family, family, sliding_window=WINDOW)
        for family in EXPORTED[backend][policy]
    }
    models = {family: HfModelSource().open(str(directory)) for family, directory in directories.items()}
    assert {family: answer(model, backend, policy) for family, model in models.items()} == dict.fromkeys(models, "")


@pytest.mark.parametrize("backend", list(hub().backends))
def test_every_backend_refuses_a_context_beyond_the_bases_alike(tmp_path: Path, backend: str) -> None:
    model = HfModelSource().open(str(write_tiny_family(tmp_path / "base", "llama")))
    told = hub().backend_options(backend)
    field = next(name for name in ("max_context_len", "context_len") if hasattr(told(), name))
    policy = hub().policies[hub().backends[backend].policies[0]]

    def said(length: int) -> list[str]:
        job = ExportJob(model=model, adapters=(), plans=(), policy=policy, options=told(**{field: length}))
        return [problem.what for problem in hub().backend(backend).check(job)]

    assert model.summary.context_len == 64
    assert said(64) == []
    assert said(65) == [f"--{field.replace('_', '-')} 65 is more than the base's 64 tokens"]
