"""What the PEFT reader refuses: each by name, all problems together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest

from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.peft.refusals import HARMLESS, HONOURED, REFUSED
from lora_core.errors import AdapterError, Problem
from tests.adapters.toy import PREFIX, Tensors, base_of, tensors_of, write

BASE = base_of()
GOOD = tensors_of(BASE, "q_proj", "v_proj")
A0 = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
B0 = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.weight"


def problems_of(directory: Path) -> tuple[Problem, ...]:
    with pytest.raises(AdapterError) as caught:
        PeftFormat().read("tested", directory, BASE)
    return tuple(caught.value.problems)


def only_problem_of(directory: Path) -> Problem:
    (problem,) = problems_of(directory)
    return problem


REFUSED_FIELDS: list[tuple[str, Any, str]] = [
    ("lora_bias", True, "bias on LoRA B"),
    ("target_parameters", ["mlp.experts.gate_up_proj"], "bare parameters"),
    ("layer_replication", [[0, 1], [0, 2]], "replicated layers"),
    ("alora_invocation_tokens", [1, 2, 3], "activated LoRA"),
    ("use_qalora", True, "QA-LoRA"),
    ("use_bdlora", {"nblocks": 2}, "BD-LoRA"),
    ("arrow_config", {"top_k": 2}, "Arrow"),
    ("velora_config", {"num_groups": 8}, "VeLoRA"),
    ("monteclora_config", {"num_samples": 2}, "MonteCLoRA"),
    ("kasa_config", {"beta": 1e-4}, "KaSA"),
    ("megatron_config", {"tensor_model_parallel_size": 2}, "Megatron"),
    ("init_lora_weights", "pissa", "PiSSA"),
    ("init_lora_weights", "pissa_niter_16", "PiSSA"),
    ("init_lora_weights", "olora", "OLoRA"),
    ("init_lora_weights", "corda", "CorDA"),
    ("init_lora_weights", "loftq", "LoftQ"),
    ("init_lora_weights", "lora_ga", "LoRA-GA"),
    ("init_lora_weights", "something_new", "unknown"),
    ("task_type", "SEQ_CLS", "head of its own"),
    ("task_type", "TOKEN_CLS", "head of its own"),
    ("peft_type", "IA3", "IA3"),
    ("peft_type", "ADALORA", "ADALORA"),
    ("peft_type", "PROMPT_TUNING", "PROMPT_TUNING"),
    ("peft_type", None, "None"),
    ("field_of_the_future", "on", "field_of_the_future='on'"),
    ("field_of_the_future", 0, "unknown"),
]


@pytest.mark.parametrize(("field", "value", "words"), REFUSED_FIELDS, ids=lambda value: str(value)[:30])
def test_reader_refuses_field_by_name_and_says_what_to_do(field: str, value: Any, words: str, tmp_path: Path) -> None:
    problem = only_problem_of(write(tmp_path, GOOD, **{field: value}))

    assert words in problem.what
    assert "'tested'" in problem.what
    assert problem.where == f"{tmp_path / 'adapter_config.json'}: {field}"
    assert problem.remedy


@pytest.mark.parametrize(
    "field",
    [
        *({"use_dora": False, "bias": "none", "modules_to_save": []}.items()),
        *({"lora_bias": False, "layer_replication": None, "target_parameters": [], "use_bdlora": None}.items()),
        *({"task_type": "CAUSAL_LM", "loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2.0}}.items()),
        *({"qalora_group_size": 32, "lora_dropout": 0.1, "runtime_config": {"ephemeral_gpu_offload": True}}.items()),
        *({"field_of_the_future": None, "init_lora_weights": "eva", "inference_mode": False}.items()),
    ],
    ids=str,
)
def test_reader_accepts_field_that_leaves_the_mathematics_alone(field: tuple[str, Any], tmp_path: Path) -> None:
    adapter = PeftFormat().read("tested", write(tmp_path, GOOD, **{field[0]: field[1]}), BASE)

    assert len(adapter.updates) == 4


def test_every_field_of_the_proven_peft_is_honoured_refused_or_known_to_be_harmless() -> None:
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}

    assert fields - (HONOURED | HARMLESS | REFUSED.keys()) == set()


def test_no_field_is_in_two_tables() -> None:
    assert not HONOURED & HARMLESS
    assert not (HONOURED | HARMLESS) & REFUSED.keys()


MALFORMED: list[tuple[str, Any]] = [
    ("r", 0),
    ("r", "8"),
    ("r", 2.5),
    ("r", True),
    ("r", None),
    ("lora_alpha", "16"),
    ("lora_alpha", None),
    ("use_rslora", "yes"),
    ("rank_pattern", {"q_proj": 0}),
    ("rank_pattern", {"q_proj": "4"}),
    ("rank_pattern", {"(": 4}),
    ("rank_pattern", {"(?i)Q_PROJ": 4}),  # valid alone, but not where PEFT puts it
    ("rank_pattern", ["q_proj"]),
    ("alpha_pattern", {"q_proj": None}),
    ("target_modules", 3),
    ("target_modules", ""),
    ("target_modules", "(unclosed"),
    ("target_modules", ["q_proj", ""]),
    ("target_modules", ["q_proj", 1]),
    ("exclude_modules", "[unclosed"),
    ("layers_to_transform", "1"),
    ("layers_to_transform", [0, "1"]),
    ("layers_pattern", "("),
    ("base_model_name_or_path", 1),
    ("fan_in_fan_out", 1),
]


@pytest.mark.parametrize(("field", "value"), MALFORMED, ids=str)
def test_reader_refuses_malformed_field(field: str, value: Any, tmp_path: Path) -> None:
    found = problems_of(write(tmp_path, GOOD, **{field: value}))

    assert f"{tmp_path / 'adapter_config.json'}: {field}" in {problem.where for problem in found}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_reader_refuses_a_configuration_with_numbers_that_json_does_not_have(value: float, tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path, GOOD, lora_alpha=value))
    assert "which JSON does not have" in problem.what


@pytest.mark.parametrize("field", ["peft_type", "r", "lora_alpha", "target_modules"])
def test_reader_names_missing_field_with_its_file(field: str, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD) / "adapter_config.json"
    config = json.loads(path.read_text())
    del config[field]
    path.write_text(json.dumps(config))

    problem = only_problem_of(tmp_path)

    assert problem.where == f"{path}: {field}"
    assert "missing" in problem.what


def test_problems_of_an_empty_configuration_name_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD) / "adapter_config.json"
    path.write_text("{}")
    assert {problem.where.partition(": ")[0] for problem in problems_of(tmp_path)} == {str(path)}


def test_reader_refuses_combinations_that_peft_refuses(tmp_path: Path) -> None:
    regex = only_problem_of(write(tmp_path / "regex", GOOD, target_modules=".*[qv]_proj", layers_to_transform=[0]))
    alone = only_problem_of(write(tmp_path / "alone", GOOD, layers_pattern="layers"))

    assert "regular expression" in regex.what
    assert "layers_pattern needs layers_to_transform" in alone.what


def test_reader_refuses_default_targets_of_a_family_that_has_none(tmp_path: Path) -> None:
    write(tmp_path, GOOD, target_modules=None)

    with pytest.raises(AdapterError, match="names no target modules"):
        PeftFormat().read("tested", tmp_path, base_of(family="module"))


EXTRA: list[tuple[str, str]] = [
    (f"{PREFIX}model.layers.0.self_attn.q_proj.lora_magnitude_vector", "magnitude of DoRA"),
    (f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.bias", "bias on LoRA B"),
    (f"{PREFIX}model.norm.base_layer.weight", "copy of base weights"),
    (f"{PREFIX}model.norm.weight", "Nothing uses"),
    (f"{PREFIX}model.layers.0.self_attn.q_proj.bias", "trained bias"),
    (f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", "vectors of trained tokens"),
    (f"{PREFIX}model.layers.0.self_attn.q_proj.lora_diag", "KaSA"),
    ("prompt_embeddings", "Nothing uses"),
    ("model.layers.0.self_attn.q_proj.lora_A.weight", "second LoRA A"),
]


@pytest.mark.parametrize(("tensor", "words"), EXTRA, ids=str)
def test_reader_names_tensor_that_nothing_uses(tensor: str, words: str, tmp_path: Path) -> None:
    problem = only_problem_of(write(tmp_path, GOOD | {tensor: np.zeros((2, 2), dtype=np.float32)}))

    assert words in problem.what
    assert problem.where == f"{tmp_path / 'adapter_model.safetensors'}: {tensor}"


def test_reader_reports_a_refused_feature_once(tmp_path: Path) -> None:
    bias = {f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.bias": np.ones(8, dtype=np.float32)}
    problem = only_problem_of(write(tmp_path, GOOD | bias, lora_bias=True))

    assert problem.where.endswith("lora_bias")


def _without(name: str) -> Tensors:
    return {key: value for key, value in GOOD.items() if key != name}


MISFITS: list[tuple[Tensors, dict[str, Any], str, str]] = [
    (_without(B0), {}, A0, "LoRA B is missing"),
    (_without(A0), {}, B0, "LoRA A is missing"),
    (GOOD | {A0: np.ones((2, 9), np.float32)}, {}, A0, "shape [2, 9] does not fit"),
    (GOOD | {B0: np.ones((7, 2), np.float32)}, {}, B0, "shape [7, 2] does not fit"),
    (GOOD | {A0: np.ones((3, 8), np.float32)}, {}, A0, "rank is 3, but adapter_config.json says 2"),
    (GOOD | {B0: np.ones((8, 3), np.float32)}, {}, B0, "rank is 3"),
    (GOOD | {A0: np.ones(8, np.float32)}, {}, A0, "shape [8] does not fit"),
    (GOOD | {A0: np.ones((0, 8), np.float32)}, {}, A0, "rank is 0"),
    (GOOD | {A0: np.full((2, 8), np.nan, np.float32)}, {}, A0, "NaN or infinity"),
    (GOOD | {B0: np.full((8, 2), np.inf, np.float32)}, {}, B0, "NaN or infinity"),
    (GOOD | {B0: np.full((8, 2), np.inf, np.float16)}, {}, B0, "NaN or infinity"),
    (GOOD | {A0: np.ones((2, 8), np.float64)}, {}, A0, "type is F64"),
    (GOOD | {A0: np.ones((2, 8), np.int8)}, {}, A0, "type is I8"),
    ({key: value for key, value in GOOD.items() if key not in (A0, B0)}, {}, A0, "no tensors"),
    (GOOD, {"target_modules": ["q_proj"]}, A0.replace("q_proj", "v_proj"), "does not target"),
    (GOOD, {"layers_to_transform": [1]}, A0, "does not target"),
    (GOOD, {"exclude_modules": ["q_proj"]}, A0, "does not target"),
    (GOOD, {"rank_pattern": {"layers.0.self_attn.q_proj": 4}}, A0, "says 4"),
    (GOOD | {A0.replace("q_proj", "qq"): np.ones((2, 8), np.float32)}, {}, A0.replace("q_proj", "qq"), "has no module"),
    (
        GOOD | {A0.replace(".weight", ".other.weight"): np.ones((2, 8), np.float32)},
        {},
        A0,
        "second LoRA A",
    ),
]


@pytest.mark.parametrize(("tensors", "config", "tensor", "words"), MISFITS, ids=[words for *_, words in MISFITS])
def test_reader_names_file_and_tensor_that_do_not_fit(
    tensors: Tensors, config: dict[str, Any], tensor: str, words: str, tmp_path: Path
) -> None:
    found = problems_of(write(tmp_path, tensors, **config))

    there = [
        problem.what for problem in found if problem.where == f"{tmp_path / 'adapter_model.safetensors'}: {tensor}"
    ]
    assert [what for what in there if words in what]


TARGETS: list[tuple[Any, str]] = [
    (["qkv_proj"], "'qkv_proj', which base model 'toy' does not have"),
    (".*nothing.*", "match no module"),
    ([], "match no module"),
    (["q_proj", "v_proj", "input_layernorm"], "neither a linear layer nor an embedding"),
    (".*(layers\\.0|[qv]_proj)", "'model.layers.0', which is neither a linear layer nor an embedding"),
]


@pytest.mark.parametrize(("targets", "words"), TARGETS, ids=str)
def test_reader_refuses_targets_that_are_no_layers(targets: Any, words: str, tmp_path: Path) -> None:
    found = problems_of(write(tmp_path, GOOD, target_modules=targets))

    assert [problem for problem in found if words in problem.what and problem.where.endswith(": target_modules")]


def test_reader_refuses_tied_lora_of_the_output_head_only(tmp_path: Path) -> None:
    head = tensors_of(BASE, "lm_head")
    tied = only_problem_of(write(tmp_path / "tied", head, target_modules=["lm_head"], ensure_weight_tying=True))
    PeftFormat().read("tested", write(tmp_path / "plain", GOOD, ensure_weight_tying=True), BASE)

    assert "ensure_weight_tying" in tied.what


def test_reader_reports_all_problems_together(tmp_path: Path) -> None:
    tensors = _without(B0) | {
        "stray": np.ones(3, np.float32),
        A0.replace("layers.0", "layers.1"): np.full((2, 8), np.nan, np.float32),
        B0.replace("layers.0", "layers.1"): np.ones((9, 2), np.float32),
    }

    text = "\n".join(map(str, problems_of(write(tmp_path, tensors, target_modules=["q_proj", "v_proj", "up_proj"]))))

    for words in ("stray", "LoRA B is missing", "NaN", "[9, 2]", "no tensors", "mlp.up_proj.lora_A"):
        assert words in text


def test_reader_reports_bad_configuration_and_bad_tensors_together(tmp_path: Path) -> None:
    found = problems_of(write(tmp_path, GOOD | {"stray": np.ones(3, np.float32)}, use_qalora=True, r=0))

    assert [problem.where.rpartition(": ")[2] for problem in found] == ["use_qalora", "r", "stray"]


def test_reader_refuses_pickle_without_opening_it(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")

    assert "pickle" in only_problem_of(tmp_path).what


def test_reader_needs_both_files(tmp_path: Path) -> None:
    (write(tmp_path / "no-config", GOOD) / "adapter_config.json").unlink()
    (write(tmp_path / "no-weights", GOOD) / "adapter_model.safetensors").unlink()

    assert only_problem_of(tmp_path / "no-config").where == str(tmp_path / "no-config" / "adapter_config.json")
    assert only_problem_of(tmp_path / "no-weights").where == str(tmp_path / "no-weights" / "adapter_model.safetensors")


def test_reader_accepts_keys_with_the_adapter_name_left_in(tmp_path: Path) -> None:
    named = {key.replace(".weight", ".default.weight"): value for key, value in GOOD.items()}

    assert len(PeftFormat().read("tested", write(tmp_path, named), BASE).updates) == 4
