"""The graph computes what the model computes: float logits equal those of the core's module, in every basis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from lora_core_qnn_sim.artifacts.foundation import read_foundation
from lora_core_qnn_sim.backend import QnnSimBackend
from lora_core_qnn_sim.graph.base_model import RealWeights, dims_of, family_problems, quantize_base, rope_tables
from lora_core_qnn_sim.graph.basis import Basis
from lora_core_qnn_sim.graph.rotation import rotated_base
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.splitting import SplitBase
from lora_core_qnn_sim.lora import graph_slots, real_lora
from lora_core_qnn_sim.options import QnnSimOptions
from lora_core_qnn_sim.runtime.floating import FloatRun
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.adapters.slots.choice import place
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.errors import ModelError
from lora_core.events import Event, Noted
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.hf import HfModelSource
from lora_core.models.module import ModuleModel
from lora_core.models.supported_families import FAMILIES
from lora_core.quant.policies import POLICIES, parse_embedding
from lora_core.testing.families import write_tiny_family
from plugins.qnn_sim.tests import tiny
from tests.numeric import apart, decoder_tolerance

pytestmark = pytest.mark.processors
# The adapter is merged into the weights on one side; rotating and splitting change what is added up, not how much.
TOLERANCE = decoder_tolerance(layers=tiny.LAYERS, hidden=tiny.DIM, inner=tiny.HIDDEN + 3, context=8, rank=4)
PROMPTS = [np.array([3, 1, 4, 1, 5, 9, 2]), np.array([6, 5])]
ATTENDS = ("q_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "o_proj", "down_proj")
TARGETS = (*ATTENDS, "in_proj", "out_proj", "w1", "w2", "w3")
OTHERS = ("gemma", "gemma2", "gemma3", "phi3", "smollm3", "granite", "olmo2", "lfm2")
NORMS_AFTER = ("gemma2", "gemma3", "olmo2")
# Channel 7 three times, channel 3 twice, in one of the layers.
SPLITS = {"layers.1.mlp": np.array([*range(tiny.HIDDEN), 3, 7, 7], np.int32)}
FEWER = {"layers.1.mlp": np.array([*range(48), 3, 7, 7], np.int32)}
CASES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    ("mistral", {"sliding_window": None}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    ("qwen2", {}),
    ("qwen3", {}),
]


@pytest.mark.parametrize(("family", "changes"), CASES)
@pytest.mark.parametrize(("rotated", "splits"), [(False, {}), (True, {}), (False, SPLITS), (True, SPLITS)])
def test_float_logits_equal_the_modules(
    tmp_path: Path, family: str, changes: dict[str, object], rotated: bool, splits: dict[str, np.ndarray]
) -> None:
    model = tiny.open_model(tiny.write_checkpoint(tmp_path / "model", model_type=family, **changes))
    assert_equal_logits(model, rotated=rotated, splits=splits)


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize(("changed", "splits"), [(False, {}), (True, FEWER)])
def test_float_logits_of_other_families_equal_the_modules(
    tmp_path: Path, family: str, changed: bool, splits: dict[str, np.ndarray]
) -> None:
    model = HfModelSource().open(str(write_tiny_family(tmp_path / "model", family)))
    assert_equal_logits(model, rotated=changed and family not in NORMS_AFTER, splits=splits)


def assert_equal_logits(model: Any, *, rotated: bool, splits: dict[str, np.ndarray]) -> None:
    asked = ExecutorchOptions(attention="sdpa", max_context_len=16, max_seq_len=16, full_logits=True)
    loaded = model.load(asked)
    dims = dims_of(model.summary)
    weights, gains = RealWeights.of(model.tensors(), model.architecture.logit_divisor), None
    cos, sin = rope_tables(model.architecture, 16)
    if rotated:
        weights, gains = rotated_base(weights, dims.n_layers)
    weights, basis = SplitBase(weights=weights, splits=splits), Basis(gains=gains, splits=splits)
    adapter = tiny.adapter("one", model.summary, seed=4, targets=TARGETS)
    plan = SlotPlan.from_adapters([adapter], model.summary.layers)
    spec = GraphSpec(dims=dims, slots=graph_slots(plan, basis), context_len=16, input_len=8, act_bits=16, lora_bits=16)
    if rotated:
        spec = GraphSpec.from_json(spec.to_json() | {"dims": spec.to_json()["dims"] | {"tied": False, "rotated": True}})
    base = quantize_base(weights, cos, sin, dict.fromkeys(weights, 8))
    lora = real_lora(spec, place([adapter], [plan]), basis)
    run = FloatRun(spec=spec, weight=lambda name: weights[name], base=base, lora=lora)
    with torch.no_grad():
        for update in adapter.updates:
            linear = loaded.module.get_submodule(loaded.paths[update.module])
            linear.weight = torch.nn.Parameter(
                linear.weight
                + torch.from_numpy(update.tensors["b"].read() @ update.tensors["a"].read()) * update.scaling,
                requires_grad=False,
            )
        for prompt, ours in zip(PROMPTS, run.logits(PROMPTS), strict=True):
            theirs = loaded.module(torch.from_numpy(prompt)[None], {"input_pos": torch.tensor([0])})
            theirs = (theirs[0] if isinstance(theirs, tuple) else theirs)[0].numpy()
            assert apart(ours, theirs) <= TOLERANCE


def test_a_module_of_the_callers_own_is_refused() -> None:
    module = ModuleModel(module=torch.nn.Linear(2, 2), example_args=(torch.zeros(1, 2),))
    job = ExportJob(model=module, adapters=(), plans=(), policy=tiny.POLICY["w8a16"], options=QnnSimOptions())
    assert "decoders as Llama is one, not for 'module'" in str(QnnSimBackend().check(job)[0])


LACKS = {
    "qwen3_5": "has no gated delta rule, no gated queries, which",
    "qwen3_moe": "has no experts, which",
    "gemma4": "has no proportional rotary embeddings, no normalized values, no heads of several widths, no keys and "
    "values that several layers share, no embeddings for each layer, no layers with a scale, which",
}


def test_every_family_is_built_or_refused_here() -> None:
    assert {family for family, _ in CASES} | {*OTHERS, *LACKS} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", LACKS)
def test_a_family_that_the_graph_cannot_carry_is_refused_with_what_it_lacks(tmp_path: Path, name: str) -> None:
    model = HfModelSource().open(str(write_tiny_family(tmp_path / "model", name)))
    (problem,) = family_problems(model.summary)
    assert problem.what == f"The simulator's graph {LACKS[name]} {name} needs"


def test_a_stream_with_norms_after_layers_is_not_rotated_and_the_export_says_so(tmp_path: Path) -> None:
    model = HfModelSource().open(str(write_tiny_family(tmp_path / "model", "olmo2")))
    (problem,) = QnnSimBackend().check(tiny.make_job(model, rotate=True))
    assert problem.what == "The stream of olmo2 cannot be rotated: norms after layers keep their gains"
    heard: list[Event] = []
    bundle = tiny.export(tiny.make_job(model), tmp_path / "out", heard)
    assert not read_foundation(bundle.file("foundation.bin")).spec.dims.rotated
    assert "The stream is not rotated" in "".join(event.message for event in heard if isinstance(event, Noted))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gemma3", "layers with a window have a rotary table of their own, and Genie makes one"),
        ("lfm2", "its convolutions keep a state, and Genie keeps keys and values"),
        ("phi3", "its rotary embedding is of type 'longrope'. Written for Genie are default, linear, llama3"),
    ],
)
def test_the_vendors_files_of_a_base_that_genie_could_not_rotate_are_refused(
    tmp_path: Path, family: str, reason: str
) -> None:
    model = HfModelSource().open(str(write_tiny_family(tmp_path / "model", family)))
    (problem,) = QnnSimBackend().check(tiny.make_job(model, context_len=12, emit_qairt=tmp_path / "hand"))
    assert problem.what == f"The vendor's files are not written for {family}: {reason}"


def test_a_configuration_that_lacks_a_size_is_refused_naming_it(model: Any) -> None:
    sizes = {name: value for name, value in model.summary.config.items() if name != "intermediate_size"}
    (problem,) = family_problems(attrs.evolve(model.summary, config=sizes))
    assert "intermediate_size is missing" in problem.what


@pytest.mark.parametrize(
    ("family", "changes", "limit"),
    [
        ("llama", {"max_position_embeddings": 24}, "the base's 24 tokens"),
        ("mistral", {"sliding_window": 24}, "the base's sliding attention window of 24 tokens"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0},
            "the base's sliding attention window of 24 tokens",
        ),
    ],
)
def test_a_context_beyond_the_bases_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], limit: str
) -> None:
    model = tiny.open_model(tiny.write_checkpoint(tmp_path / "model", model_type=family, **changes))
    (problem,) = QnnSimBackend().check(tiny.make_job(model, context_len=25))
    assert problem.what == f"--context-len 25 is more than {limit}"
    assert not QnnSimBackend().check(tiny.make_job(model, context_len=24))


def test_a_stored_head_that_the_configuration_ties_to_another_embedding_is_refused(tmp_path: Path) -> None:
    directory = tiny.write_checkpoint(tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + np.float32(1)},
        directory / "model.safetensors",
    )
    with pytest.raises(ModelError, match="ties the output head to the embedding"):
        tiny.export(tiny.make_job(tiny.open_model(directory)), tmp_path / "out")


def test_a_policy_with_float_layers_is_refused_listing_the_simulators(model: Any) -> None:
    job = tiny.make_job(model)
    for policy in POLICIES:
        said = "\n".join(str(p) for p in QnnSimBackend().check(attrs.evolve(job, policy=policy)))
        assert "w8a16, w4a16, w8a8" in said


def test_the_embedding_takes_bits_of_its_own(tmp_path: Path, model: Any) -> None:
    narrow = attrs.evolve(tiny.POLICY["w8a16"], embedding=parse_embedding("4,0"))
    bundle = tiny.export(attrs.evolve(tiny.make_job(model), policy=narrow), tmp_path / "out")
    linears = read_foundation(bundle.file("foundation.bin")).base.linears
    assert {name for name, weight in linears.items() if weight.bits == 4} == {"embed_tokens.weight"}


def test_an_embedding_in_groups_is_refused(model: Any) -> None:
    grouped = attrs.evolve(tiny.POLICY["w8a16"], embedding=parse_embedding("4,16"))
    (problem,) = QnnSimBackend().check(attrs.evolve(tiny.make_job(model), policy=grouped))
    assert "4 bits per group for embedding layers" in problem.what


@pytest.mark.parametrize("family", OTHERS)
def test_the_integer_graph_of_other_families_is_near_the_module(tmp_path: Path, family: str) -> None:
    model = HfModelSource().open(str(write_tiny_family(tmp_path / "model", family, sliding_window=32)))
    options = {"context_len": 32, "input_len": 8}
    bundle = lora_core.export(model, backend="qnn_sim", options=options, out=tmp_path / "out")
    report = lora_core.verify(bundle, model, reference="eager", tokens=4)
    assert report.passed, report
