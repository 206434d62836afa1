"""Whatever is asked wrongly is refused before any heavy work, by name, and all of it at once."""

import json

import attrs
import pytest
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.lowering.assembly import check_alignment
from lora_core_coreml.lowering.method import LoweredMethod
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.program.naming import method_name, name_problems

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError, BundleError, LoraCoreError, UnsupportedError
from lora_core.events import ignore
from lora_core.quant.policy import QuantPolicy, Scheme


def words(problems) -> str:
    return "\n".join(map(str, problems))


@pytest.mark.parametrize("name", ["forward", "prefill", "decode"])
@pytest.mark.parametrize("multifunction", [False, True])
def test_a_reserved_name_is_refused(name: str, multifunction: bool) -> None:
    assert "reserved" in words(name_problems([name], multifunction))


@pytest.mark.parametrize("name", ["my-adapter", "1st", "a b", "", "emoji😀"])
def test_a_name_that_cannot_be_a_method_is_refused(name: str) -> None:
    assert "letters, digits and underscores" in words(name_problems([name], False))


def test_a_name_given_twice_is_refused() -> None:
    assert "also a method of adapter 'shout'" in words(name_problems(["shout", "shout"], False))


def test_a_name_that_meets_a_constant_method_is_refused(exporter) -> None:
    job = exporter.job(["shout"])
    clash = attrs.evolve(job, adapters=(attrs.evolve(job.adapters[0], name="vocab_size"),))
    assert "already a method of the program" in words(CoremlBackend().check(clash))


def test_every_problem_of_a_job_is_reported_at_once(exporter) -> None:
    job = exporter.job(["shout", "pirate"], max_context_len=500, input_len=0, split_size=0)
    shout, pirate = job.adapters
    job = attrs.evolve(
        job,
        adapters=(attrs.evolve(shout, name="forward"), attrs.evolve(pirate, name="a-b")),
        policy=QuantPolicy(name="mine", summary="", linear=Scheme(bits=8, activations="int8_dynamic")),
    )
    found = words(CoremlBackend().check(job))
    for part in ("--input-len", "--split-size", "--max-context-len 500", "forward", "a-b", "int8_dynamic activations"):
        assert part in found
    assert len(CoremlBackend().check(job)) == 6


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
    import torch

    from lora_core.models.module import ModuleModel

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
    from pathlib import Path

    return LoweredMethod(
        name=name,
        plan={},
        others=(),
        buffers=(),
        packages=tuple(Path(f"{name}_{index}") for index in range(len(partitions))),
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
    from lora_core_coreml.program.matrices import from_adapter

    plan = SlotPlan.from_adapters([large], exporter.job([]).model.summary.layers)
    with pytest.raises(AdapterError, match=r"A of model\.layers\.0\.self_attn\.q_proj.*--dtype fp32"):
        from_adapter(large, plan, 0, float16=True)
    from_adapter(large, plan, 0, float16=False)


def test_adding_to_a_bundle_without_template_says_how_to_make_one(exporter) -> None:
    base = exporter.export([])
    with pytest.raises(BundleError, match="--max-rank"):
        CoremlBackend().link(base, [exporter.adapter("shout")], exporter.folder("refused"), ignore)


def test_adding_an_adapter_outside_the_plan_says_what_is_missing(exporter, bundle: Bundle) -> None:
    with pytest.raises(LoraCoreError, match="k_proj"):
        CoremlBackend().link(bundle, [exporter.adapter("whole")], exporter.folder("refused"), ignore)


def test_adding_under_a_name_that_is_no_method_is_refused(exporter, bundle: Bundle) -> None:
    adapter = attrs.evolve(exporter.adapter("shout"), name="shout-2")
    with pytest.raises(BundleError, match="letters"):
        CoremlBackend().link(bundle, [adapter], exporter.folder("refused"), ignore)


def test_a_template_of_a_newer_version_is_refused_clearly(exporter, bundle: Bundle, tmp_path) -> None:
    import shutil

    newer = attrs.evolve(bundle, path=tmp_path / "newer")
    shutil.copytree(bundle.path, newer.path)
    path = newer.path / "template" / "object.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    adapter = attrs.evolve(exporter.adapter("shout"), name="again")
    with pytest.raises(BundleError, match="schema version 99"):
        CoremlBackend().link(newer, [adapter], exporter.folder("refused"), ignore)


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
    assert "execution" in diagnosis.facts
