"""The template cache gives the bytes of an uncached export, for every base of the architecture, or is not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.lowering import base
from lora_core_coreml.lowering.methods import lower_all
from lora_core_coreml.quant import POLICIES
from lora_core_coreml.weightless.lowering import StandInLowering
from lora_core_coreml.weightless.program import NotWeightlessError, WeightlessMethods
from lora_core_coreml.weightless.standins import what_stays, with_stand_ins
from safetensors.numpy import load_file, save_file

from lora_core.adapters.slots.choice import place
from lora_core.backend import ExportJob
from lora_core.events import Event, StageFinished, Warned
from lora_core.models.module import ModuleModel

POLICY = {policy.name: policy for policy in POLICIES}


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def lowered(events: list[Event]) -> bool:
    return any(isinstance(event, StageFinished) and event.stage == "lower methods" for event in events)


@pytest.fixture(scope="session")
def export(exporter) -> Callable[[ExportJob], tuple[dict[str, bytes], list[Event]]]:
    def run(job: ExportJob) -> tuple[dict[str, bytes], list[Event]]:
        out = exporter.folder("cached")
        events: list[Event] = []
        CoremlBackend().export(job, out, events.append)
        return files_of(out), events

    return run


@pytest.fixture(scope="session")
def another(exporter, tmp_path_factory: pytest.TempPathFactory):
    """The exporter on another base: other weights, two of them equal by chance."""
    directory = tmp_path_factory.mktemp("model") / "other"
    directory.mkdir()
    (directory / "config.json").write_bytes((exporter.model / "config.json").read_bytes())
    tensors = load_file(exporter.model / "model.safetensors")
    for name, tensor in tensors.items():
        tensors[name] = tensor[..., ::-1].copy() * 0.5
    first = "model.layers.0.self_attn.{}_proj.weight"
    tensors[first.format("k")] = tensors[first.format("v")]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return attrs.evolve(exporter, model=directory, cache=None, made={}, events={})


@pytest.mark.parametrize(
    ("policy", "names", "options"),
    [
        ("c4w", ["shout"], {}),
        pytest.param("b4w", ["shout"], {}, marks=pytest.mark.deep),
        ("fp16", ["whole"], {"multifunction": True}),
        ("fp16", ["shout"], {"graph_breaks": True, "split_size": 32, "max_splits": 4}),
        pytest.param("fp16", ["shout"], {"dtype": "fp32"}, marks=pytest.mark.deep),
    ],
)
def test_another_base_filled_from_the_cache_equals_its_own_export(
    exporter,
    another,
    export,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    names: list[str],
    options: dict[str, object],
) -> None:
    """What the first base's lowering kept, which other tests use too, gives the second what its own lowering does."""
    exporter.export(names, policy=POLICY[policy], **options)
    second = another.job(names, policy=POLICY[policy], **options)
    cached, reusing = export(attrs.evolve(second, cache=exporter.cache))
    monkeypatch.setattr(StandInLowering, "weightless", lambda self, known, always: None)
    plain, _ = export(second)
    assert not lowered(reusing)
    assert sorted(cached) == sorted(plain)
    assert [name for name in plain if cached[name] != plain[name]] == []


@pytest.mark.deep
def test_templates_that_jobs_of_one_plan_kept_serve_one_of_both(exporter, export) -> None:
    names = ["shout", "whole"]
    alone = [exporter.job([name]) for name in names]
    for name in names:
        exporter.export([name])
    plans = tuple(job.plans[0] for job in alone)
    both = attrs.evolve(alone[0], plans=plans, adapters=place([exporter.adapter(name) for name in names], plans))
    cached, reusing = export(attrs.evolve(both, cache=exporter.cache))
    plain, _ = export(both)
    assert not lowered(reusing)
    assert [name for name in plain if cached[name] != plain[name]] == []


def test_a_damaged_entry_is_told_and_built_anew(exporter, export, tmp_path: Path) -> None:
    job = attrs.evolve(exporter.job([]), cache=tmp_path)
    first, _ = export(job)
    (entry,) = tmp_path.iterdir()
    model = entry / "forward_0.mlmodel"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    again, events = export(job)
    assert again == first
    assert lowered(events)
    assert [event.message for event in events if isinstance(event, Warned)] == [
        f"The cache entry {entry} is damaged and is built anew: {model.name} does not match its hash"
    ]


def test_a_weight_that_is_all_ones_is_part_of_the_identity(exporter) -> None:
    """coremltools leaves out a multiplication by ones, so another base must not be filled into what is left."""
    module = base.prepare(exporter.job([])).module
    before = what_stays(module)
    module.norm.weight.data.fill_(1.0)
    assert what_stays(module) != before
    assert torch.equal(with_stand_ins(module).norm.weight, module.norm.weight)


def test_weights_that_functions_hold_themselves_are_not_told_apart(exporter, tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(16, 4, bias=False)
            self.scale = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * self.scale

    handle = ModuleModel(module=Scaled(), example_args=(torch.ones(2, 16),))
    job = attrs.evolve(exporter.job([]), model=handle, adapters=(), plans=())
    prepared = base.prepare(job)
    stand_in = attrs.evolve(prepared, module=with_stand_ins(prepared.module))
    program = lower_all(job, stand_in, tmp_path / "lowered", lambda: None)
    with pytest.raises(NotWeightlessError, match="scale is so small that functions hold its values"):
        WeightlessMethods.strip(program, stand_in.module)


def test_a_callers_own_module_is_not_cached(exporter, export, tmp_path: Path) -> None:
    handle = ModuleModel(module=torch.nn.Linear(16, 16, bias=False), example_args=(torch.ones(2, 16),))
    export(attrs.evolve(exporter.job([]), model=handle, cache=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
