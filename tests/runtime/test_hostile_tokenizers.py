"""A stranger's tokenizer.json fails as a damaged bundle does, and neither hangs nor fills the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_core.errors import BundleError
from lora_core.runtime.tokenizer import TextTokenizer

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
MORE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
LESS = {"type": "Replace", "pattern": {"String": "aa"}, "content": "a"}


def tokenizer(directory: Path, **parts: Any) -> TextTokenizer:
    empty = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"))
    document = {"version": "1.0", "added_tokens": [], "model": WORDS} | empty | parts
    (directory / "tokenizer.json").write_text(json.dumps(document))
    return TextTokenizer.read(directory)


def chain(*steps: Any, kind: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


@pytest.mark.parametrize(
    "parts",
    [
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]], "byte_fallback": False}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}},
    ],
    ids=["no token for the unknown", "no id for the unknown", "an expression with too many matches"],
)
def test_a_tokenizer_that_fails_on_a_text_is_the_bundles_fault(tmp_path: Path, parts: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"cannot make tokens of this text.*tokenizer\.json"):
        tokenizer(tmp_path, **parts).encode("b" + "x" * 28 + "z")


def test_a_tokenizer_that_fails_on_tokens_is_the_bundles_fault(tmp_path: Path) -> None:
    cutting = {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}
    with pytest.raises(BundleError, match="cannot make text of these tokens"):
        tokenizer(tmp_path, decoder=cutting).decode([0])


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": chain(*[MORE] * 20)},
        {"normalizer": chain(chain(*[MORE] * 10), chain(*[MORE] * 10))},
        {"decoder": chain(*[MORE] * 20, kind="decoders")},
        {"normalizer": chain(*[{"type": "Replace", "pattern": {"Regex": "x*"}, "content": "x" * 100}] * 4)},
    ],
    ids=["a row", "rows in a row", "a decoder", "an expression that matches nothing"],
)
def test_replacements_that_multiply_a_text_are_refused(tmp_path: Path, part: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="characters of one"):
        tokenizer(tmp_path, **part)


def test_replacements_that_shorten_it_again_do_not_count_against_it(tmp_path: Path) -> None:
    assert tokenizer(tmp_path, normalizer=chain(*[LESS] * 20, MORE)).encode("b") == [1]


def test_what_is_no_text_is_not_blamed_on_the_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        tokenizer(tmp_path).encode(b"a")  # type: ignore[arg-type]
