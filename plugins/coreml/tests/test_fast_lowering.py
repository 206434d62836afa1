"""Fast lowering changes the time that a method takes, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.lowering import method
from lora_core_coreml.lowering.fast import PATCHES, fast_lowering
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.quant import POLICIES
from lora_core_coreml.quiet import quiet

from lora_core.backend import ExportJob
from lora_core.events import ignore
from lora_core.fast_lowering import FastLowering
from lora_core.models.module import ModuleModel

POLICY = {policy.name: policy for policy in POLICIES}


class Layer(torch.nn.Module):
    """Attention to what came before, and a gated layer: most of what a decoder has."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        sizes = {"query": (16, 16), "key": (16, 16), "gate": (16, 24), "up": (16, 24), "down": (24, 16)}
        for name, (width, rows) in sizes.items():
            layer = torch.nn.Linear(width, rows, bias=name == "query")
            for parameter in layer.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys = torch.cat([past, self.key(x)], dim=1)
        scores = torch.softmax(self.query(x) @ keys.transpose(1, 2) / 4.0, dim=-1)
        x = x + scores @ keys
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x)), keys


def of_a_layer(_exporter: Any) -> ExportJob:
    given = (torch.ones(1, 4, 16), torch.ones(1, 12, 16))
    model = ModuleModel(module=Layer().eval(), example_args=given)
    return ExportJob(model=model, adapters=(), plans=(), policy=POLICY["c4w"], options=CoremlOptions())


def of_a_decoder(exporter: Any) -> ExportJob:
    return attrs.evolve(exporter.job(["shout"], policy=POLICY["c4w"]), adapters=())


def files(job: ExportJob, out: Path) -> dict[str, bytes]:
    out.mkdir()
    CoremlBackend().export(job, out, ignore)
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("job_of", [of_a_layer, pytest.param(of_a_decoder, marks=pytest.mark.deep)])
def test_fast_lowering_writes_the_same_bytes(
    exporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_of: Callable[[Any], ExportJob]
) -> None:
    job = job_of(exporter)
    fast = files(job, tmp_path / "fast")
    monkeypatch.setattr(method, "fast_lowering", lambda: contextlib.nullcontext(FastLowering()))
    monkeypatch.setattr(method, "decomposed", lambda program, _: program)
    assert fast == files(job, tmp_path / "slow")


def test_everything_is_in_place_and_put_back() -> None:
    with quiet():
        from coremltools.converters.mil.mil import Block, Program
        from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    def replaced() -> list[Any]:
        return [
            vars(PassPipelineManager)["apply_pipeline"],
            Program.validate,
            Program.__str__,
            Block._propagate_nonreplaceable_vars,
        ]

    before = replaced()
    with fast_lowering() as state:
        assert state.patches == tuple(PATCHES)
        assert not any(now is then for now, then in zip(replaced(), before, strict=True))
    assert all(now is then for now, then in zip(replaced(), before, strict=True))


def test_a_type_is_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet():
        from coremltools.converters.mil.mil import types
        from coremltools.converters.mil.mil.types import type_mapping

    asked: list[Any] = []
    describe = type_mapping.get_type_info
    monkeypatch.setattr(type_mapping, "get_type_info", lambda kind: asked.append(kind) or describe(kind))
    kinds = (types.tensor(types.fp16, (2, 3)), types.tensor(types.fp16, (3, 2)), types.str, types.fp16, None, 1, True)

    def told() -> list[tuple[bool, bool]]:
        return [(type_mapping.is_tensor(kind), type_mapping.is_str(kind)) for kind in kinds]

    plain = told()
    asked.clear()
    with fast_lowering():
        assert told() == plain
        assert asked.count(kinds[0]) == 1


def fits(*values: Any) -> bool:
    """Ask coremltools whether an operation on these constants may be computed in float16."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    given = np.array(values, np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=given.shape)])
    def program(x: Any) -> Any:
        return mb.add(x=x, y=given)

    (operation,) = [each for each in program.functions["main"].operations if each.op_type == "add"]
    return not FP16ComputePrecision.fp16_overflow(operation)


@pytest.mark.parametrize(
    "values",
    [(1.0, -65504.0), (65505.0, 0.0), (0.0, -1e30), (np.inf, -np.inf), (1e38, 3e38), (np.nan, 70000.0), (np.nan,)],
)
def test_what_fits_into_float16_fits_whoever_looks(values: tuple[float, ...]) -> None:
    with quiet():
        theirs = fits(*values)
        with fast_lowering():
            assert fits(*values) == theirs
        assert theirs == (not any(65504 < abs(value) < 1e38 for value in np.array(values, np.float32)))
