"""Whatever is asked wrongly is refused before any heavy work, by name, and all of it at once."""

import json
import shutil
import tomllib
from importlib.metadata import version
from pathlib import Path

import attrs
import pytest
import torch
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.hooks import COREML
from lora_core_coreml.lowering.assembly import check_alignment
from lora_core_coreml.lowering.constants import LoweredPackage
from lora_core_coreml.lowering.method import LoweredMethod
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.program.naming import collisions, method_name
from lora_core_coreml.program.slot_tensors import from_adapter
from lora_core_coreml.quant import POLICIES
from lora_core_coreml.storage import mil, pte

from lora_core.adapters.names import name_problems
from lora_core.adapters.slots.choice import place
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError, BundleError, UnsupportedError
from lora_core.events import ignore
from lora_core.models.module import ModuleModel
from lora_core.plugin import requirements
from lora_core.quant.policy import QuantPolicy, Scheme


def words(problems) -> str:
    return "\n".join(map(str, problems))


@pytest.mark.parametrize(
    "name",
    ["forward", "prefill", "decode", "shout_forward", "shout_prefill", "vocab_size", "decode_mask_specs", "get_name"],
)
def test_the_program_s_own_names_are_reserved(name: str) -> None:
    assert "reserved" in words(name_problems([name], reserved=COREML.reserved))


@pytest.mark.parametrize("name", ["tensor", "fp16", "state", "main"])
def test_words_of_mil_are_reserved(name: str) -> None:
    assert "reserved" in words(name_problems([name], reserved=COREML.reserved))


def test_every_constant_method_of_a_program_is_reserved(exporter, bundle: Bundle) -> None:
    for each in (bundle, exporter.export(["whole"], multifunction=True)):
        plans = pte.read(each.path / "model.pte").program["execution_plan"]
        names = [plan["name"] for plan in plans if not plan["delegates"]]
        assert len(names) > 10
        assert len(name_problems(names, reserved=COREML.reserved)) == len(names)


def test_a_name_that_metadata_of_the_base_has_is_refused_before_lowering(exporter) -> None:
    job = exporter.job(["shout"])
    module = torch.nn.ModuleDict({"q": torch.nn.Linear(16, 16)})
    model = ModuleModel(module=module, example_args=(torch.zeros(1, 16),), metadata={"shout": 1})
    clash = attrs.evolve(job, model=model)
    with pytest.raises(AdapterError, match="'shout' is already a method of the program"):
        CoremlBackend().export(clash, exporter.folder("refused"), ignore)


def test_a_name_that_a_stored_constant_method_has_is_refused(exporter, bundle: Bundle) -> None:
    (placed,) = exporter.placed(bundle, ["shout"])
    clash = attrs.evolve(placed, adapter=attrs.evolve(placed.adapter, name="head_dim"))
    with pytest.raises(AdapterError, match="'head_dim' is already a method of the program"):
        CoremlBackend().link(bundle, [clash], exporter.folder("refused"), ignore)


def test_a_method_of_two_words_collides_as_a_whole() -> None:
    assert not collisions(["whole"], True, ["whole"])
    assert "'whole_prefill' of adapter 'whole'" in words(collisions(["whole"], True, ["whole_prefill"]))


def test_every_problem_of_a_job_is_reported_at_once(exporter) -> None:
    policy = QuantPolicy(name="mine", summary="", linear=Scheme(bits=8, activations="int8_dynamic"))
    job = exporter.job(["shout"], policy=policy, max_context_len=500, input_len=0, split_size=0)
    found = words(CoremlBackend().check(job))
    for part in ("--input-len", "--split-size", "--max-context-len 500", "int8_dynamic activations"):
        assert part in found
    assert len(CoremlBackend().check(job)) == 4


def test_a_job_without_problems_has_none(exporter) -> None:
    assert not CoremlBackend().check(exporter.job(["shout", "pirate"]))


def test_a_context_without_room_for_a_cache_is_refused() -> None:
    problems = CoremlOptions(max_context_len=32, input_len=32).problems()
    assert "leaves no cache" in words(problems)


def test_an_unknown_dtype_is_refused() -> None:
    assert "fp16 or fp32" in words(CoremlOptions(dtype="bf16").problems())  # type: ignore[arg-type]


def test_the_default_context_is_the_base_s_own_if_that_is_shorter() -> None:
    assert CoremlOptions().context_len(64) == 64
    assert CoremlOptions().context_len(8192) == 1024
    assert CoremlOptions(max_context_len=128).context_len(64) == 128


@pytest.mark.parametrize(
    ("scheme", "part"),
    [
        (Scheme(bits=4, activations="uint16"), "uint16 activations"),
        (Scheme(bits=4, symmetric=False), "asymmetric"),
        (Scheme(bits=8, granularity="tensor"), "one scale for a whole tensor"),
        (Scheme(bits=16, granularity="group", group_size=32), "groups of weights that are not quantized"),
    ],
)
def test_a_policy_that_coreml_cannot_do_is_refused(exporter, scheme: Scheme, part: str) -> None:
    policy = QuantPolicy(name="mine", summary="", linear=scheme)
    found = words(CoremlBackend().check(exporter.job([], policy=policy)))
    assert part in found
    assert "c4w" in found


def test_a_policy_that_quantizes_lora_is_refused(exporter) -> None:
    policy = QuantPolicy(name="mine", summary="", lora=Scheme(bits=8))
    assert "quantizes LoRA matrices" in words(CoremlBackend().check(exporter.job([], policy=policy)))


def test_multifunction_needs_a_language_model(exporter) -> None:
    job = exporter.job([], multifunction=True)
    module = torch.nn.Sequential(torch.nn.Linear(16, 16))
    job = attrs.evolve(job, model=ModuleModel(module=module, example_args=(torch.zeros(1, 16),)))
    assert "--multifunction" in words(CoremlBackend().check(job))


def test_the_help_states_the_methods_that_will_result() -> None:
    help_text = attrs.fields(CoremlOptions).multifunction.metadata["help"]
    for part in ("forward", "prefill", "NAME_forward", "NAME_prefill"):
        assert part in help_text


def test_method_names_are_as_the_help_says() -> None:
    assert method_name(None, "forward", False) == "forward"
    assert method_name("shout", "forward", False) == "shout"
    assert method_name("shout", "prefill", True) == "shout_prefill"
    assert method_name(None, "prefill", True) == "prefill"


def lowered(name: str, partitions: list[list[str]]) -> LoweredMethod:
    return LoweredMethod(
        name=name,
        plan={},
        others=(),
        buffers=(),
        packages=tuple(LoweredPackage(model=mil.new_model(), constants=()) for _ in partitions),
        operators=tuple(tuple(operators) for operators in partitions),
    )


def test_partitions_that_do_not_align_name_method_and_operator() -> None:
    whole = lowered("forward", [["aten.linear.default", "aten.erfinv.default"]])
    cut = lowered("template0_forward", [["aten.linear.default"], ["aten.linear.default"]])
    with pytest.raises(UnsupportedError, match=r"template0_forward.*2 CoreML partitions.*aten\.erfinv\.default"):
        check_alignment([whole, cut])
    check_alignment([whole, lowered("prefill", [["aten.linear.default"]])])


def test_a_matrix_that_float16_cannot_hold_is_named(exporter, tmp_path) -> None:
    from safetensors.numpy import load_file, save_file

    source = exporter.adapters["shout"]
    tensors = load_file(source / "adapter_model.safetensors")
    name = next(key for key in sorted(tensors) if "lora_A" in key)
    tensors[name][0, 0] = 70000.0
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    large = attrs.evolve(exporter, adapters={"large": tmp_path}).adapter("large")
    (placed,) = place([large], [SlotPlan.from_adapters([large], exporter.job([]).model.summary.layers)])
    with pytest.raises(AdapterError, match=r"A of model\.layers\.0\.self_attn\.q_proj.*--dtype fp32"):
        from_adapter(placed, float16=True)
    from_adapter(placed, float16=False)


def test_a_template_that_is_gone_is_an_error_that_names_the_file(exporter, bundle: Bundle, tmp_path) -> None:
    gone = attrs.evolve(bundle, path=tmp_path / "gone")
    shutil.copytree(bundle.path, gone.path)
    (gone.path / "template" / "partition_0.mlmodel").unlink()
    with pytest.raises(BundleError, match=r"template cannot be read.*partition_0\.mlmodel"):
        CoremlBackend().unlink(gone, ["shout"], exporter.folder("refused"), ignore)


def test_a_template_of_a_newer_version_is_refused_clearly(exporter, bundle: Bundle, tmp_path) -> None:
    newer = attrs.evolve(bundle, path=tmp_path / "newer")
    shutil.copytree(bundle.path, newer.path)
    path = newer.path / "template" / "object.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(BundleError, match="schema version 99"):
        CoremlBackend().link(newer, exporter.placed(newer, ["shout"]), exporter.folder("refused"), ignore)


def test_a_failing_tool_is_blamed_with_the_method(exporter, tmp_path) -> None:
    from lora_core_coreml.lowering.method import lower_method

    from lora_core.errors import PluginError

    with pytest.raises(PluginError, match="method 'forward'") as caught:
        lower_method("forward", object(), tmp_path, float16=True)
    assert caught.value.__cause__ is not None


def test_diagnose_names_versions_and_how_programs_run() -> None:
    diagnosis = CoremlBackend().diagnose()
    assert diagnosis.works, words(diagnosis.problems)
    assert diagnosis.facts["coremltools"] == "9.0"
    assert "reference evaluation" in diagnosis.facts["execution"]


def test_diagnose_tells_each_distribution_that_is_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"coremltools": "0.0.1"}
    monkeypatch.setattr(requirements, "installed", lambda name: found.get(name) or version(name))
    (problem,) = CoremlBackend().diagnose().problems
    assert problem.what == "Backend 'coreml' needs coremltools 9.0, but 0.0.1 is installed"


def test_the_distribution_pins_the_versions_that_the_descriptor_names() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    dependencies = project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["dependencies"]
    assert dict(each.split("==") for each in dependencies if "==" in each) == COREML.requires


@pytest.mark.parametrize(("policy", "refused"), [("fp16", True), ("c4w", True), ("emb8", False)])
def test_a_cut_between_a_head_and_its_embedding_that_are_one_matrix_is_refused(
    exporter, policy: str, refused: bool
) -> None:
    chosen = next(each for each in POLICIES if each.name == policy)
    job = exporter.job(["shout"], policy=chosen, graph_breaks=True)
    found = words(CoremlBackend().check(job))
    assert ("would be stored twice" in found) == refused
    assert "stored twice" not in words(CoremlBackend().check(exporter.job(["shout"], policy=chosen)))
