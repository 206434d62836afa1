"""The template cache gives the bytes of a base lowered with its own weights, or is not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs
import pytest
from lora_core_xnnpack.backend import XnnpackBackend
from lora_core_xnnpack.estimating import foundation_bytes
from safetensors.numpy import load_file, save_file
from workbench import ALL_LINEAR, Whole, Workbench

from lora_core.backend import Artifacts, ExportJob
from lora_core.events import Event, StageFinished, Warned
from lora_core.models.hf import HfModelSource
from lora_core.models.module import ModuleModel

Exported = Callable[[ExportJob], tuple[Path, Artifacts]]


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def export(job: ExportJob, out: Path) -> tuple[dict[str, bytes], list[Event]]:
    out.mkdir()
    events: list[Event] = []
    XnnpackBackend().export(job, out, events.append)
    return files_of(out), events


def stages(events: list[Event]) -> list[str]:
    """Return what was lowered."""
    finished = [event.stage for event in events if isinstance(event, StageFinished)]
    return [stage for stage in finished if stage.startswith("Lower ")]


def lowered(events: list[Event]) -> bool:
    return bool(stages(events))


def loaded(events: list[Event]) -> bool:
    return any(isinstance(event, StageFinished) and event.stage == "Load the base model" for event in events)


def whole(job: ExportJob) -> ExportJob:
    return attrs.evolve(job, model=Whole(handle=job.model))


def with_equal_weights(root: Path, equal: dict[str, str]) -> ExportJob:
    """Return a job whose base has for each layer of `equal` the weight of the other one."""
    bench = Workbench.make(root, layers=1)
    checkpoint = bench.checkpoint / "model.safetensors"
    tensors = load_file(checkpoint)
    tensors |= {f"{name}.weight": tensors[f"{other}.weight"] for name, other in equal.items()}
    save_file(tensors, checkpoint)
    return attrs.evolve(bench.job([]), model=HfModelSource().open(str(bench.checkpoint)))


@pytest.mark.parametrize(
    ("layout", "policy", "embedding", "scale_search"),
    [
        ("split", "fp32", None, "affine"),
        ("split", "8da4w", "4,32", "hqq"),
        pytest.param("split", "fp16", None, "affine", marks=pytest.mark.deep),
        pytest.param("split", "c8w", None, "affine", marks=pytest.mark.deep),
        pytest.param("split", "8da8w", "8,0", "affine", marks=pytest.mark.deep),
        ("multimethod", "fp32", None, "affine"),
        pytest.param("multimethod", "8da4w", "8,0", "affine", marks=pytest.mark.deep),
    ],
)
def test_a_base_filled_from_the_cache_equals_one_lowered_with_its_own_weights(
    tmp_path: Path, layout: Literal["split", "multimethod"], policy: str, embedding: str | None, scale_search: str
) -> None:
    """In the split layout the first base has no adapter, so its program is there and the second's template is not."""
    first, second = (Workbench.make(tmp_path / "model", layers=1, seed=seed) for seed in (1, 2))
    apart = layout == "split"

    def job(bench: Workbench, cache: Path | None, *, alone: bool = False) -> ExportJob:
        adapters = [] if alone else [bench.adapter("some", seed=5, targets=ALL_LINEAR)]
        chosen = bench.job(adapters, policy=policy, embedding=embedding, cache=cache)
        options = attrs.evolve(chosen.options, layout=layout, scale_search=scale_search)
        return attrs.evolve(chosen, options=options)

    _, filling = export(job(first, tmp_path / "cache", alone=apart), tmp_path / "first")
    partly, adding = export(job(second, tmp_path / "cache"), tmp_path / "partly")
    cached, reusing = export(job(second, tmp_path / "cache"), tmp_path / "cached")
    held, holding = export(whole(job(second, None)), tmp_path / "held")
    assert (lowered(filling), lowered(reusing), lowered(holding)) == (True, False, True)
    assert stages(adding) == (["Lower the template"] if apart else [])
    assert (loaded(filling), loaded(reusing), loaded(holding)) == (False, False, True)
    assert sorted(cached) == sorted(partly) == sorted(held)
    assert [name for name in held if cached[name] != held[name] or partly[name] != held[name]] == []
    # What the estimate leaves out: norms, rotary tables and the front, each of a few thousand bytes here.
    assert 0 < len(held["foundation.ptd"]) - foundation_bytes(job(second, None)) < 12_000


def test_layers_that_are_equal_by_chance_are_stored_as_lowering_them_would(tmp_path: Path) -> None:
    block = "model.layers.0"
    equal = {f"{block}.mlp.up_proj": f"{block}.mlp.gate_proj", f"{block}.self_attn.o_proj": f"{block}.self_attn.q_proj"}
    job = with_equal_weights(tmp_path, equal)
    streamed, events = export(job, tmp_path / "streamed")
    held, _ = export(whole(job), tmp_path / "held")
    assert not loaded(events)
    assert [name for name in held if streamed[name] != held[name]] == []


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
