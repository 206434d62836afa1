"""The template cache gives the bytes of an uncached export, for every base of the architecture, or is not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs
import pytest
from lora_core_xnnpack.backend import XnnpackBackend
from workbench import ALL_LINEAR, Workbench

from lora_core.backend import Artifacts, ExportJob
from lora_core.events import Event, StageFinished, Warned
from lora_core.models.module import ModuleModel

Exported = Callable[[ExportJob], tuple[Path, Artifacts]]


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def export(job: ExportJob, out: Path) -> tuple[dict[str, bytes], list[Event]]:
    out.mkdir()
    events: list[Event] = []
    XnnpackBackend().export(job, out, events.append)
    return files_of(out), events


def lowered(events: list[Event]) -> bool:
    return any(isinstance(event, StageFinished) and event.stage.startswith("Lower ") for event in events)


@pytest.mark.parametrize(
    ("layout", "policy", "embedding"),
    [
        ("split", "fp32", None),
        ("split", "8da4w", "4,32"),
        ("split", "8da8w", "8,0"),
        ("multimethod", "fp32", None),
        ("multimethod", "8da4w", "8,0"),
    ],
)
def test_another_base_filled_from_the_cache_equals_its_own_export(
    tmp_path: Path, layout: Literal["split", "multimethod"], policy: str, embedding: str | None
) -> None:
    first, second = (Workbench.make(tmp_path / "model", layers=1, seed=seed) for seed in (1, 2))

    def job(bench: Workbench, cache: Path | None) -> ExportJob:
        adapters = [bench.adapter("some", seed=5, targets=ALL_LINEAR)]
        chosen = bench.job(adapters, policy=policy, embedding=embedding, cache=cache)
        return attrs.evolve(chosen, options=attrs.evolve(chosen.options, layout=layout))

    _, filling = export(job(first, tmp_path / "cache"), tmp_path / "first")
    cached, reusing = export(job(second, tmp_path / "cache"), tmp_path / "cached")
    plain, _ = export(job(second, None), tmp_path / "plain")
    assert lowered(filling)
    assert not lowered(reusing)
    assert sorted(cached) == sorted(plain)
    assert [name for name in plain if cached[name] != plain[name]] == []


def test_a_damaged_entry_is_told_and_built_anew(one_layer: Workbench, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    job = one_layer.job([], cache=cache)
    first, _ = export(job, tmp_path / "first")
    entry = next(cache.iterdir())
    program = entry / "0.pte"
    program.write_bytes(program.read_bytes()[:-1] + b"x")
    again, events = export(job, tmp_path / "again")
    assert again == first
    assert lowered(events)
    assert [event.message for event in events if isinstance(event, Warned)] == [
        f"The cache entry {entry} is damaged and is built anew: 0.pte does not match its hash"
    ]
    third, events = export(job, tmp_path / "third")
    assert third == first
    assert not lowered(events)


def test_weights_that_are_equal_by_chance_are_not_cached(one_layer: Workbench, tmp_path: Path) -> None:
    import torch

    class Twins(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (torch.nn.Linear(8, 8, bias=False) for _ in range(2))
            self.right.weight.data.copy_(self.left.weight.data)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x) + self.right(torch.nn.functional.silu(x))

    from lora_core_xnnpack.cache.origins import DependsOnWeightsError
    from lora_core_xnnpack.split.weightless import WeightlessSet

    job = one_layer.job([])
    handle = ModuleModel(module=Twins().eval(), example_args=(torch.ones(1, 8),))
    out = tmp_path / "twins"
    out.mkdir()
    from lora_core_xnnpack.files.data_file import stored_blobs
    from lora_core_xnnpack.split.lowering import lower_all

    from lora_core.events import ignore
    from lora_core.models.base import ModelOptions

    base = handle.load(ModelOptions())
    programs, planned = lower_all(base, (), out, ignore)
    data = (out / "foundation.ptd").read_bytes()
    with pytest.raises(DependsOnWeightsError, match=r"equal, so they cannot be told apart: left.weight, right.weight"):
        WeightlessSet.strip(base.module, programs, planned, data, stored_blobs(data, out))
    cached = tmp_path / "cache"
    export(attrs.evolve(job, model=handle, cache=cached), tmp_path / "own")
    assert not cached.exists()
