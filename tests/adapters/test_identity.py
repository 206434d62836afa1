"""Whether an adapter's own words about its base are contradicted."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from lora_core.adapters.identity import other_base
from tests.adapters.toy import base_of, made


@pytest.mark.parametrize(
    "said",
    [None, "", "org/toy", "ORG/Toy", "mirror/toy", "toy", "/models/toy/", "C:\\models\\toy", "toy-dir", "x/toy-dir"],
)
def test_base_that_is_called_alike_is_not_warned_about(said: str | None, tmp_path: Path) -> None:
    adapter = attrs.evolve(made(tmp_path, base_of(), "q_proj"), base_model=said)

    assert other_base(adapter, base_of()) is None


@pytest.mark.parametrize(
    "said",
    [
        "unsloth/toy-bnb-4bit",
        "unsloth/Toy-unsloth-bnb-4bit",
        "mlx-community/toy-4bit",
        "x/toy-GPTQ-Int4",
        "x/toy-GPTQ",
        "x/toy-AWQ",
        "x/toy-FP8",
        "x/toy-FP8-dynamic",
        "x/toy-quantized.w4a16",
        "x/toy-GGUF",
        "x/toy-w4a16",
        "mlx-community/toy_8bit-mlx",
        "./toy-bf16/",
        "x/toy-GPTQ-4bit-128g-actorder",
        "x/toy-AutoRound-GPTQ-4bit",
        "x/toy-NVFP4",
        "x/toy-FP8-KV",
        "x/toy-nf4",
        "x/toy-w4a16g128",
        "x/toy-sharded-bf16",
    ],
)
def test_a_quantized_copy_is_the_same_base(said: str, tmp_path: Path) -> None:
    adapter = attrs.evolve(made(tmp_path, base_of(), "q_proj"), base_model=said)

    assert other_base(adapter, base_of()) is None


@pytest.mark.parametrize(
    ("said", "base"),
    [
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct"),
        ("unsloth/Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B"),
        ("x/Toy", "x/Toy-AWQ"),
    ],
)
def test_another_name_of_the_base_is_no_other_base(said: str, base: str, tmp_path: Path) -> None:
    adapter = attrs.evolve(made(tmp_path, base_of(), "q_proj"), base_model=said)

    assert other_base(adapter, attrs.evolve(base_of(), identities=(base,))) is None


@pytest.mark.parametrize("said", ["org/toy-instruct-bnb-4bit", "org/toy-4b", "4bit", "org/other-4bit"])
def test_a_quantized_copy_of_another_base_is_warned_about(said: str, tmp_path: Path) -> None:
    adapter = attrs.evolve(made(tmp_path, base_of(), "q_proj"), base_model=said)

    assert other_base(adapter, base_of()) is not None


@pytest.mark.parametrize("said", ["org/other", "toy2", "toy/checkpoint-100"])
def test_other_base_is_warned_about_by_both_names(said: str, tmp_path: Path) -> None:
    adapter = attrs.evolve(made(tmp_path, base_of(), "q_proj"), base_model=said)

    warning = other_base(adapter, base_of())

    assert warning is not None
    assert repr(said) in warning
    assert "'org/toy' or 'toy-dir'" in warning


def test_base_without_identities_contradicts_nothing(tmp_path: Path) -> None:
    adapter = attrs.evolve(made(tmp_path, base_of(), "q_proj"), base_model="org/other")

    assert other_base(adapter, attrs.evolve(base_of(), identities=())) is None
