"""What options and policies change, each compared with the eager module at its own precision."""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.lowering import base
from lora_core_coreml.lowering.sentinels import fill
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.quant import POLICIES
from lora_core_coreml.runtime.evaluation.program import EvaluatedProgram
from lora_core_coreml.session_options import CoremlSessionOptions
from lora_core_coreml.storage import mil, package, pte

from lora_core.adapters.slots.choice import place
from lora_core.backend import ExportJob
from lora_core.bundle.bundle import Bundle
from lora_core.events import Warned, ignore
from lora_core.models.injection import eject
from lora_core.models.module import ModuleModel
from lora_core.quant.policies import parse_policy
from tests.numeric import FLOAT16, apart, decoder_tolerance, tolerance

TOKENS = [5, 17, 3, 99]
POLICY = {policy.name: policy for policy in POLICIES}
# Of the spread of the logits. Some fifteen operations a layer are rounded to float16 in two layers, and the head.
HALF = tolerance(2 * 15 + 2, unit=FLOAT16)


def eager(exporter, job: ExportJob, names: Sequence[str | None]) -> dict[str | None, np.ndarray]:
    """Logits after TOKENS from the very module that was lowered, in torch, at its own precision."""
    prepared = base.prepare(job)
    shape = prepared.shapes[-1]
    found: dict[str | None, np.ndarray] = {}
    for name in names:
        if name:
            (placed,) = place([exporter.adapter(name)], job.plans)
            values = placed.values_by_module()
            fill(prepared.module, placed.plan, prepared.paths, values, float16=prepared.float16)
        _, options = prepared.inputs(shape)
        for mask in options["masks"].values():
            causal = torch.full((shape.input_len, shape.input_len), float("-inf")).triu(1)
            mask[:, :, shape.cache_len :] = causal.to(mask.dtype)
        tokens = torch.tensor([TOKENS], dtype=torch.int32)
        with torch.no_grad():
            logits = prepared.module(tokens, options)[0].float().numpy()
        found[name] = logits[0, -1] if logits.ndim == 3 else logits[0]
        eject(prepared.module)
    return found


def evaluated(bundle: Bundle, name: str | None, precision: str) -> np.ndarray:
    with CoremlBackend().open(bundle, CoremlSessionOptions(precision=precision)) as session:
        return session.step(name, TOKENS, 0)


def constants(bundle: Bundle, method: str) -> list[Any]:
    models = [mil.parse_model(p.read(package.MODEL)) for p in packages(bundle)]
    return [
        operation
        for model in models
        for operation in mil.operations(model.mlProgram.functions[method])
        if operation.type == "const" or operation.type.startswith("constexpr_")
    ]


def own_matrices(bundle: Bundle, method: str) -> list[Any]:
    """Return the constant matrices in the blob file that `method` refers to and the base does not."""
    found = []
    for model in (mil.parse_model(p.read(package.MODEL)) for p in packages(bundle)):
        functions = model.mlProgram.functions
        base = {value.offset for _, value in mil.blob_references(functions["forward"])}
        for operation in mil.operations(functions[method]):
            value = operation.attributes["val"] if operation.type == "const" else None
            if value is not None and value.WhichOneof("value") == "blobFileValue":
                own = value.blobFileValue.offset not in base and len(value.type.tensorType.dimensions) == 2
                found += [operation] if own else []
    return found


def packages(bundle: Bundle) -> list[package.StoredPackage]:
    return package.stored_packages(pte.read(bundle.path / "model.pte"))


@pytest.mark.parametrize("policy", ["c4w", "b4w", "emb4"])
def test_a_quantized_program_agrees_with_its_own_eager_module(exporter, policy: str) -> None:
    expected = eager(exporter, exporter.job(["shout"], policy=POLICY[policy]), [None, "shout"])
    bundle = exporter.export(["shout"], policy=POLICY[policy])
    for name, logits in expected.items():
        for precision in ("float16", "float32"):
            assert apart(evaluated(bundle, name, precision), logits) <= HALF
    assert apart(expected["shout"], expected[None]) > 10 * HALF


@pytest.mark.parametrize("policy", ["c4w", "b4w"])
def test_a_policy_quantizes_the_base_and_leaves_lora_alone(exporter, policy: str) -> None:
    bundle = exporter.export(["shout"], policy=POLICY[policy])
    lora = own_matrices(bundle, "shout")
    assert len(lora) == 8
    half = mil.proto().MIL__pb2.DataType.Value("FLOAT16")
    assert {operation.outputs[0].type.tensorType.dataType for operation in lora} == {half}
    sizes = {blob.size for blob in CoremlBackend().sharing.blobs(bundle) if blob.methods == {"forward", "shout"}}
    assert 64 * 96 // 2 in sizes  # a feed-forward weight at four bits
    assert 160 * 64 in sizes  # the embedding at eight
    assert 64 * 96 * 2 not in sizes


@pytest.mark.parametrize("policy", ["c4w", "b4w"])
def test_a_head_of_8_bits_that_is_tied_to_its_embedding_is_stored_with_it(exporter, policy: str) -> None:
    blobs = list(CoremlBackend().sharing.blobs(exporter.export(["shout"], policy=POLICY[policy])))
    (table,) = (blob for blob in blobs if blob.size == 160 * 64)
    assert table.methods == {"forward", "shout"}
    assert 160 * 64 // 2 not in {blob.size for blob in blobs}  # what a head of 4 bits would be


def test_layers_that_a_group_size_does_not_divide_are_told(exporter) -> None:
    wide = attrs.evolve(POLICY["b4w"].linear, group_size=64)  # down_proj takes 96 features
    bundle = exporter.export([], policy=attrs.evolve(POLICY["b4w"], linear=wide, output=None))
    (warned,) = [event for event in exporter.events[bundle.path] if isinstance(event, Warned)]
    assert warned.message.startswith("Policy b4w leaves 2 layers at full precision, whose width the group size 64")
    assert "model.layers.1.mlp.down_proj" in warned.message
    sizes = {blob.size for blob in CoremlBackend().sharing.blobs(bundle)}
    assert 64 * 96 * 2 in sizes  # down_proj stays in float16
    assert 64 * 96 // 2 in sizes  # up_proj is at four bits


def test_nothing_is_told_where_every_layer_divides(exporter) -> None:
    bundle = exporter.export([], policy=POLICY["c4w"])
    assert not [event for event in exporter.events[bundle.path] if isinstance(event, Warned)]


@pytest.mark.parametrize(("embedding", "size"), [("8,32", 160 * 64), ("4,0", 160 * 64 // 2)])
def test_an_embedding_is_quantized_with_any_policy(exporter, embedding: str, size: int) -> None:
    policy = parse_policy("fp16", POLICY, embedding=embedding)
    expected = eager(exporter, exporter.job([], policy=policy), [None])
    bundle = exporter.export([], policy=policy)
    assert np.abs(evaluated(bundle, None, "float32") - expected[None]).max() < HALF
    assert size in {blob.size for blob in CoremlBackend().sharing.blobs(bundle)}


@pytest.mark.parametrize("policy", ["c4w", "b4w"])
def test_the_quantized_foundation_does_not_depend_on_adapters(exporter, policy: str) -> None:
    alone = exporter.export([], policy=POLICY[policy])
    assert alone.manifest.foundation == exporter.export(["shout"], policy=POLICY[policy]).manifest.foundation


def test_decode_and_prefill_share_weights_and_caches(exporter) -> None:
    bundle = exporter.export(["whole"], multifunction=True)
    program = EvaluatedProgram(bundle.path / "model.pte")
    try:
        assert program.methods == {"forward", "prefill", "whole_forward", "whole_prefill"}
        assert program.constant("adapter_methods") == ["whole_forward", "whole_prefill"]
        decode, prefill = (program.constant(f"{kind}_kv_cache_specs")[0] for kind in ("decode", "prefill"))
        assert set(decode[:, 4]) == set(prefill[:, 4]) == {23}
        assert program.constant("decode_input_len") == [1]
        assert program.constant("prefill_input_len") == [4]
    finally:
        program.close()
    blobs = list(CoremlBackend().sharing.blobs(bundle))
    base_blobs = [blob for blob in blobs if "forward" in blob.methods and blob.size > 1000]
    assert all(blob.methods == program.methods for blob in base_blobs)
    assert len({blob.sha256 for blob in blobs}) == len(blobs)


def test_prefill_and_decode_continue_each_other(exporter) -> None:
    bundle = exporter.export(["whole"], multifunction=True)
    expected = eager(exporter, exporter.job(["whole"], multifunction=True), [None, "whole"])
    for name, logits in expected.items():
        with CoremlBackend().open(bundle, CoremlSessionOptions(precision="float32")) as session:
            together = session.step(name, TOKENS, 0)
            session.reset()
            session.step(name, TOKENS[:3], 0)
            continued = session.step(name, TOKENS[3:], 3)
            session.reset()
            for position, token in enumerate(TOKENS):
                alone = session.step(name, [token], position)
        for found in (together, continued, alone):
            assert apart(found, logits) <= HALF


def test_a_link_into_a_multifunction_bundle_equals_the_export(exporter) -> None:
    empty = exporter.export([], plan_of=["whole"], multifunction=True)
    added = exporter.add(empty, ["whole"])
    expected = exporter.export(["whole"], multifunction=True)
    assert (added.path / "model.pte").read_bytes() == (expected.path / "model.pte").read_bytes()


def test_float32_agrees_to_float32_rounding(exporter) -> None:
    expected = eager(exporter, exporter.job(["shout"], dtype="fp32"), [None, "shout"])
    bundle = exporter.export(["shout"], dtype="fp32")
    for name, logits in expected.items():
        limit = decoder_tolerance(layers=2, hidden=64, inner=96, context=24, rank=4)
        assert apart(evaluated(bundle, name, "float32"), logits) <= limit


def test_graph_breaks_cut_the_program_and_splitting_spares_lora(exporter) -> None:
    sizes = {"graph_breaks": True, "split_size": 32, "max_splits": 4}
    bundle = exporter.export(["shout"], **sizes)
    expected = eager(exporter, exporter.job(["shout"], **sizes), [None, "shout"])
    assert len(packages(bundle)) == 3
    for name, logits in expected.items():
        assert apart(evaluated(bundle, name, "float32"), logits) <= HALF
    names = [operation.outputs[0].name for operation in constants(bundle, "forward")]
    assert any("w1_parts_2" in name for name in names)
    assert len(own_matrices(bundle, "shout")) == 8
    first = exporter.adapter("shout").updates[0]
    shapes = {
        tuple(d.constant.size for d in operation.outputs[0].type.tensorType.dimensions)
        for operation in own_matrices(bundle, "shout")
    }
    assert {tensor.shape for tensor in first.tensors.values()} <= shapes


def test_linear_split_can_be_left_out(exporter) -> None:
    from lora_core_coreml.lowering.splitting import SplitLinear

    kept = base.prepare(exporter.job([], linear_split=False, split_size=32)).module
    split = base.prepare(exporter.job([], split_size=32)).module
    assert not [m for m in kept.modules() if isinstance(m, SplitLinear)]
    assert [m for m in split.modules() if isinstance(m, SplitLinear)]
    # The tied head is stored once, with the embedding, and so is never split.
    assert not isinstance(split.output, SplitLinear)


@pytest.mark.parametrize("kind", ["importance", "compensated"])
def test_layers_rounded_for_their_inputs_are_those_of_the_core_also_where_they_are_split(
    exporter, tmp_path, kind
) -> None:
    job = exporter.job([], policy=POLICY["c4w"], split_size=32, rounding=kind)
    prepared = base.prepare(job)
    with job.options.how_to_round.layers(job.model, prepared.assignment, tmp_path, ignore) as layers:
        name = "model.layers.1.mlp.gate_proj"
        parts = prepared.module.get_submodule(prepared.paths[name]).parts
        integers, scales = layers.rows(name, 0)
    assert len(parts) > 1
    assert np.array_equal(torch.cat([part.weight.qdata for part in parts]).numpy(), integers)
    # Scales were chosen among those that float16 holds.
    assert np.array_equal(torch.cat([part.weight.scale for part in parts]).float().numpy(), scales)


@pytest.mark.parametrize("options", [{}, {"rounding": "compensated"}, {"dtype": "fp32"}])
def test_rounding_tells_the_weights_of_the_quantized_base(exporter, tmp_path, options) -> None:
    job = exporter.job([], policy=POLICY["c4w"], linear_split=False, **options)
    prepared = base.prepare(job)
    rounded, tensors = CoremlBackend().rounding(job, tmp_path, ignore), job.model.tensors()
    for layer in (each for each in job.model.summary.layers if each.kind == "linear" and not each.is_output):
        expected = prepared.module.get_submodule(prepared.paths[layer.name]).weight.dequantize().float().numpy()
        found = rounded(layer, tensors[f"{layer.name}.weight"].read())
        # A product of float16 is rounded once more than one of float32: 2^-11.
        assert np.abs(found - expected).max() <= 2.0**-11 * np.abs(expected).max(), layer.name


def test_the_package_can_be_written_for_xcode(exporter) -> None:
    bundle = exporter.export(["shout"], emit_mlpackage=True)
    root = bundle.path / "mlpackage" / "partition_0" / "model.mlpackage"
    (found,) = packages(bundle)
    assert (root / "Manifest.json").read_bytes() == found.read("model.mlpackage/Manifest.json")
    from lora_core_coreml.quiet import coremltools, quiet

    with quiet():
        model = coremltools().models.MLModel(str(root), skip_model_load=True)
    assert {function.name for function in model.get_spec().description.functions} == {"forward", "shout"}
    roles = {artifact.path: artifact.role for artifact in bundle.manifest.artifacts}
    assert "mlpackage" in roles.values()


class Scorer(torch.nn.Module):
    """A caller's own module: no caches, no tokens, no metadata."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.up = torch.nn.Linear(32, 48)
        self.down = torch.nn.Linear(48, 16, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.silu(self.up(x)))


def test_a_callers_own_module_is_exported_and_left_as_it_was(exporter, tmp_path) -> None:
    module = Scorer()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    example = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))
    job = ExportJob(
        model=ModuleModel(module=module, example_args=(example,)),
        adapters=(),
        plans=(),
        policy=POLICY["fp16"],
        options=CoremlOptions(),
    )
    assert not CoremlBackend().check(job)
    CoremlBackend().export(job, tmp_path, ignore)
    program = EvaluatedProgram(tmp_path / "model.pte")
    try:
        (found,) = program.run("forward", [example.numpy().astype(np.float16)], "float32")
    finally:
        program.close()
    with torch.no_grad():
        # Input and two weights are rounded to float16.
        assert apart(found, module(example)) <= tolerance(3, unit=FLOAT16)
    for name, parameter in module.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])
