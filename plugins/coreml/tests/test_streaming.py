"""A base that is not held has the weights of the base held, read some rows at a time; its module takes no memory."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from lora_core_coreml.lowering import base as lowering_base
from lora_core_coreml.lowering.methods import lower_all
from lora_core_coreml.quant import POLICIES
from lora_core_coreml.streaming import base as streaming_base
from lora_core_coreml.streaming.base import StreamedWeights
from lora_core_coreml.weightless.forms import HeldWeights, TensorForm, Weights, plain_tensors
from lora_core_coreml.weightless.program import WeightlessMethods
from lora_core_coreml.weightless.rows import one_row_each
from lora_core_coreml.weightless.standins import what_stays, with_stand_ins

from lora_core.models.module import ModuleModel

POLICY = {policy.name: policy for policy in POLICIES}
CASES = [
    ("fp16", {}),
    ("fp16", {"dtype": "fp32"}),
    ("c4w", {"split_size": 32}),
    ("b4w", {"split_size": 32, "graph_breaks": True}),
    ("emb4", {"multifunction": True}),
]


def stored(weights: Weights, form: TensorForm) -> list[bytes]:
    return [bytes(piece) for piece in weights.pieces(form)]


@pytest.mark.parametrize(("policy", "options"), CASES)
def test_every_weight_is_that_of_the_base_held(
    exporter, monkeypatch: pytest.MonkeyPatch, policy: str, options: dict[str, object]
) -> None:
    monkeypatch.setattr(streaming_base, "_BLOCK_BYTES", 2048)
    job = exporter.job([], policy=POLICY[policy], **options)
    held = lowering_base.prepare(job).module
    streamed = StreamedWeights.of(job)
    assert streamed is not None
    assert what_stays(streamed.prepared.module) == what_stays(held)
    most = 0
    for path, part, _ in plain_tensors(held):
        form = TensorForm(path=path, part=part)
        found, expected = stored(streamed, form), stored(HeldWeights(held), form)
        assert b"".join(found) == b"".join(expected), form
        assert streamed.size(form) == len(b"".join(found))
        most = max(most, len(found))
    assert most > 10  # pieces of the embedding


def test_four_bits_are_packed_across_pieces(exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_base, "_BLOCK_BYTES", 2048)
    job = exporter.job([], policy=POLICY["c4w"])
    form = TensorForm(path="layers.1.feed_forward.w2.weight", part="qdata", transform="int4")
    streamed = StreamedWeights.of(job)
    assert streamed is not None
    pieces = stored(streamed, form)
    assert len(pieces) > 2
    assert [b"".join(pieces)] == stored(HeldWeights(lowering_base.prepare(job).module), form)


@pytest.mark.parametrize("policy", ["fp16", "c4w"])
def test_neither_the_module_nor_its_stand_in_takes_memory_of_a_matrix(exporter, policy: str) -> None:
    streamed = StreamedWeights.of(exporter.job([], policy=POLICY[policy]))
    assert streamed is not None
    for module in (streamed.prepared.module, with_stand_ins(streamed.prepared.module)):
        for path, part, tensor in plain_tensors(module):
            if tensor.dim() > 1 and tensor[0].numel() > 16:
                assert tensor.untyped_storage().nbytes() <= tensor[0].numel() * tensor.element_size(), (path, part)


def test_what_one_tensor_fills_is_one_parameter(exporter) -> None:
    """An embedding and a head that are stored as they are are lowered once; quantized by two schemes, they are two."""
    for policy, tied in (("fp16", True), ("emb8", False)):
        job = exporter.job([], policy=POLICY[policy])
        streamed = StreamedWeights.of(job)
        assert streamed is not None
        for module in (lowering_base.prepare(job).module, streamed.prepared.module):
            assert (module.output.weight is module.tok_embeddings.weight) == tied


def test_a_callers_own_module_is_held(exporter) -> None:
    handle = ModuleModel(module=torch.nn.Linear(16, 16, bias=False), example_args=(torch.ones(2, 16),))
    assert StreamedWeights.of(attrs.evolve(exporter.job([]), model=handle)) is None


def test_a_stand_in_is_one_row_in_what_is_lowered_and_filled_with_its_weight(exporter, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 512, bias=False))
    module[0].weight.data = torch.randn(512, 64, generator=torch.Generator().manual_seed(6))
    handle = ModuleModel(module=module, example_args=(torch.ones(2, 64),))
    job = attrs.evolve(exporter.job([]), model=handle, adapters=(), plans=())
    prepared = lowering_base.prepare(job)
    stand_in = attrs.evolve(prepared, module=with_stand_ins(prepared.module))
    with one_row_each():
        program = lower_all(job, stand_in, tmp_path, lambda: None)
    (lowered,) = program.everything
    assert 2 * 64 in [constant.key.size for constant in lowered.packages[0].constants]
    stripped = WeightlessMethods.strip(program, stand_in.module)
    forms = {origin.form for (found,) in stripped.origins.values() for origin in found}
    assert forms - {None} == {TensorForm(path="0.weight")}
    (method,) = stripped.fill(HeldWeights(prepared.module)).everything
    weight = prepared.module[0].weight.detach().numpy().tobytes()
    assert weight in [constant.read() for constant in method.packages[0].constants]
