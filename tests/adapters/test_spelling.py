"""Keys as wrappers leave them, and files that are no LoRA adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.peft.spelling import Spelling
from lora_core.errors import AdapterError
from tests.adapters.toy import PREFIX, Tensors, base_of, deltas, tensors_of, write

BASE = base_of()
GOOD = tensors_of(BASE, "q_proj", "v_proj")

SPELLINGS: dict[str, Callable[[str], str]] = {
    "DataParallel": lambda key: f"module.{key}",
    "DataParallel inside": lambda key: key.replace(PREFIX, f"{PREFIX}module."),
    "torch.compile": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "torch.compile outside": lambda key: f"_orig_mod.{key}",
    "FSDP": lambda key: key.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
    "FSDP of FSDP": lambda key: f"_fsdp_wrapped_module.{key.replace('.q_proj', '._fsdp_wrapped_module.q_proj')}",
    "activation checkpointing": lambda key: key.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "a model that sees": lambda key: key.replace(PREFIX, f"{PREFIX}language_model."),
    "a model that sees, newer": lambda key: key.replace("model.layers", "model.language_model.layers"),
    "AutoModel": lambda key: key.replace(f"{PREFIX}model.", PREFIX),
    "no prefix": lambda key: key.removeprefix(PREFIX),
    "no prefix and no model": lambda key: key.removeprefix(f"{PREFIX}model."),
    "the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "all at once": lambda key: f"module.{key.replace('.self_attn', '._fsdp_wrapped_module.self_attn')}",
}


def respelled(spelling: str) -> Tensors:
    return {SPELLINGS[spelling](key): value for key, value in GOOD.items()}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_a_wrapper_left_in_the_keys_does_not_matter(spelling: str, tmp_path: Path) -> None:
    plain, wrapped = (
        PeftFormat().read("tested", write(tmp_path / str(index), tensors), BASE)
        for index, tensors in enumerate((GOOD, respelled(spelling)))
    )

    assert [each.module for each in wrapped.updates] == [each.module for each in plain.updates]
    for module, delta in deltas(plain).items():
        np.testing.assert_array_equal(deltas(wrapped)[module], delta)


@pytest.mark.parametrize(
    "targets",
    [
        [f"language_model.model.layers.{index}.self_attn.{part}_proj" for index in (0, 1) for part in "qv"],
        r".*language_model.*\.self_attn\.(q|v)_proj",
    ],
    ids=["list", "expression"],
)
def test_targets_may_name_what_the_keys_name(targets: Any, tmp_path: Path) -> None:
    directory = write(
        tmp_path,
        respelled("a model that sees"),
        target_modules=targets,
        rank_pattern={r"language_model\..*": 2},
        alpha_pattern={"language_model.model.layers.0.self_attn.q_proj": 16},
        r=7,
    )

    assert [each.scaling for each in PeftFormat().read("tested", directory, BASE).updates] == [8.0, 2.0, 2.0, 2.0]


def test_a_module_of_the_base_is_itself_even_if_it_is_called_as_a_wrapper() -> None:
    assert Spelling.of(("module", "module.up", "up")).module("module.up") == "module.up"


def test_an_ending_that_several_modules_have_is_not_guessed() -> None:
    assert Spelling.of(("encoder.layers.0", "decoder.layers.0")).module("layers.0") == "layers.0"


def test_two_spellings_of_one_module_are_refused(tmp_path: Path) -> None:
    key = next(iter(GOOD))
    with pytest.raises(AdapterError, match="second LoRA A"):
        PeftFormat().read("tested", write(tmp_path, GOOD | {f"module.{key}": GOOD[key]}), BASE)


ONES = np.ones((2, 2), np.float32)
STRANGERS: list[tuple[Tensors, dict[str, Any], str]] = [
    ({key: np.zeros(0, np.float32) for key in GOOD}, {}, "DeepSpeed ZeRO-3"),
    ({}, {}, "holds no tensors"),
    ({"prompt_embeddings": ONES}, {"peft_type": "PROMPT_TUNING"}, "type 'PROMPT_TUNING'"),
    ({"prompt_embeddings": ONES}, {}, "prompt tuning"),
    ({"base_model.model.q_proj.hada_w1_a": ONES, "base_model.model.q_proj.hada_w1_b": ONES}, {}, "LoHa"),
    (GOOD, {"peft_type": "LOHA"}, "type 'LOHA'"),
    ({"base_model.model.q_proj.lokr_w1": ONES}, {}, "LoKr"),
    ({"base_model.model.q_proj.ia3_l": ONES}, {}, "(IA)3"),
    ({"lora_te_layers_0_q_proj.lora_down.weight": ONES}, {}, "kohya"),
    ({"model.layers.0.self_attn.q_proj.lora_a": ONES}, {}, "MLX-LM"),
    ({"model.embed_tokens.weight": ONES, "model.norm.weight": ONES}, {}, "Is it a whole model?"),
]


@pytest.mark.parametrize(("tensors", "config", "words"), STRANGERS, ids=[words for *_, words in STRANGERS])
def test_a_file_that_is_no_lora_says_in_a_line_what_it_is(
    tensors: Tensors, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError) as caught:
        PeftFormat().read("tested", write(tmp_path, tensors, **config), BASE)

    (problem,) = caught.value.problems
    assert words in str(problem)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_git_lfs_pointer_is_told_for_what_it_is(name: str, tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    (write(tmp_path, GOOD) / name).write_text(pointer)

    with pytest.raises(AdapterError) as caught:
        PeftFormat().read("tested", tmp_path, BASE)

    (problem,) = caught.value.problems
    assert "git-lfs pointer" in problem.what
    assert "git lfs pull" in problem.remedy


def test_a_module_of_a_wrapper_that_the_base_lacks_is_named_without_it(tmp_path: Path) -> None:
    tensors = {f"module.{key.replace('q_proj', 'qq_proj')}": value for key, value in GOOD.items()}

    with pytest.raises(AdapterError, match=r"does not have: 'model\.layers\.0\.self_attn\.qq_proj'"):
        PeftFormat().read("tested", write(tmp_path, tensors), attrs.evolve(BASE, name="other"))
