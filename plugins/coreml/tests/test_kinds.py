"""Lowering and linking know of no kind of slot: one with a single vector is exported, linked, added and evaluated."""

from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.quant import POLICIES
from lora_core_coreml.runtime.evaluation.program import EvaluatedProgram

from lora_core.adapters.adapter import Adapter, Update
from lora_core.adapters.slots import kinds
from lora_core.adapters.slots.choice import place
from lora_core.adapters.slots.kinds import Extent, Part, SlotKind
from lora_core.adapters.slots.modules import SlotModule
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.bundle.bundle import Bundle
from lora_core.events import ignore
from lora_core.models.module import ModuleModel, ModuleTensor

INPUTS, OUTPUTS = 32, 48


class Gained(SlotModule):
    """`out = base(x) * gain`, one factor for each output."""

    PARTS: Mapping[str, str] = {"gain": "gain"}

    def __init__(self, base: torch.nn.Module, gain: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.gain = torch.nn.Parameter(gain, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) * self.gain


class Gain(SlotKind):
    """A factor for each output of a layer."""

    name = "gain"

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        return (Part(name="gain", shape=(extent.out_features,), neutral="one"),)

    def extent(self, update: Update) -> Extent:
        del update
        return Extent(in_features=INPUTS, out_features=OUTPUTS, rank=1)

    def fold(self, update: Update | None, extent: Extent) -> kinds.Values:
        return {"gain": np.ones(extent.out_features, np.float32) if update is None else update.tensors["gain"].read()}

    def combine(self, updates) -> Update:
        raise NotImplementedError("no test combines gains")

    def wrap(self, module, values):
        return Gained(module, values["gain"])


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> ExportJob:
    """The export of a module with two linear layers, of which the first has a gain; no adapters yet."""
    monkeypatch.setitem(kinds.KINDS, "gain", Gain())
    module = torch.nn.Sequential(
        torch.nn.Linear(INPUTS, OUTPUTS), torch.nn.SiLU(), torch.nn.Linear(OUTPUTS, INPUTS, bias=False)
    )
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    example = torch.randn(2, INPUTS, generator=generator)
    model = ModuleModel(module=module, example_args=(example,))
    plan = SlotPlan.from_adapters([gain("one", 1)], model.summary.layers)
    (policy,) = (each for each in POLICIES if each.name == "fp16")
    return ExportJob(model=model, adapters=(), plans=(plan,), policy=policy, options=CoremlOptions())


def gain(name: str, seed: int) -> Adapter:
    return gain_of(name, torch.rand(OUTPUTS, generator=torch.Generator().manual_seed(seed)) + 0.5)


def gain_of(name: str, values: torch.Tensor) -> Adapter:
    update = Update(module="0", kind="gain", tensors={"gain": ModuleTensor(name="gain", parameter=values)}, scaling=1.0)
    return Adapter(name=name, updates=(update,), digest=name, source=name)


def with_adapters(job: ExportJob, *adapters: Adapter) -> ExportJob:
    return attrs.evolve(job, adapters=place(adapters, job.plans))


def test_a_vector_is_lowered_and_linked_like_a_matrix(exporter, job: ExportJob, tmp_path: Path) -> None:
    job = with_adapters(job, gain("one", 1), gain("two", 2))
    CoremlBackend().export(job, tmp_path, ignore)
    (example,) = job.model.example_args
    first, activation, last = job.model.module
    program = EvaluatedProgram(tmp_path / "model.pte")
    try:
        for placed in job.adapters:
            (values,) = (values for _, values in placed.values())
            (found,) = program.run(placed.name, [example.numpy().astype(np.float16)], "float32")
            with torch.no_grad():
                expected = last(activation(first(example) * torch.from_numpy(values["gain"]))).numpy()
            # Weights and inputs are rounded to float16 once.
            assert np.abs(found - expected).max() < 0.01
    finally:
        program.close()


def test_adding_a_vector_writes_the_bytes_of_an_export_with_it(exporter, job: ExportJob) -> None:
    made = {}
    for names in (("one",), ("one", "two")):
        out = exporter.folder("gains")
        chosen = with_adapters(job, *(gain(name, len(name) + index) for index, name in enumerate(names)))
        made[names] = exporter.bundle(out, chosen, CoremlBackend().export(chosen, out, ignore))
    added = exporter.link(made["one",], place([gain("two", 4)], job.plans))
    assert program_bytes(added) == program_bytes(made["one", "two"])


def test_what_the_base_has_already_is_not_stored_again(exporter, job: ExportJob) -> None:
    out = exporter.folder("known")
    chosen = with_adapters(job, gain_of("known", job.model.module[0].bias))
    bundle = exporter.bundle(out, chosen, CoremlBackend().export(chosen, out, ignore))
    joined = exporter.link(bundle, place([gain("other", 1)], job.plans))

    for each in (bundle, joined):
        hashes = [blob.sha256 for blob in CoremlBackend().sharing.blobs(each)]
        assert len(hashes) == len(set(hashes))
        assert CoremlBackend().sharing.fingerprint(each) == bundle.manifest.foundation


def program_bytes(bundle: Bundle) -> bytes:
    return (bundle.path / "model.pte").read_bytes()
