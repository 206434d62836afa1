"""Prompts to calibrate on come from files of strangers too, and so does the tokenizer that makes tokens of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lora_core.errors import InputError
from lora_core.models.base import TokenizerFiles
from lora_core.preparation.prompts import calibration_prompts

NO_UNKNOWN = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}}


def test_ids_of_a_file_are_the_prompts(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[[1, 2, 3], [], [4]]")
    prompts = calibration_prompts(str(tmp_path / "ids.json"), None, vocab_size=5, longest=2)
    assert [prompt.tolist() for prompt in prompts] == [[1, 2], [4]]


@pytest.mark.parametrize("name", ["ids.json", "text.txt"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "tokenizer.json").write_text(json.dumps(NO_UNKNOWN))
    files = TokenizerFiles(files=(tmp_path / "tokenizer.json",))
    with pytest.raises(InputError, match="a pipe"):
        calibration_prompts(str(tmp_path / name), files, vocab_size=5, longest=8)


@pytest.mark.parametrize("text", ["[" * 10_000, "[[1], [NaN]]", "[[5]]", '{"a": 1}'])
def test_ids_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ids.json").write_text(text)
    with pytest.raises(InputError, match=r"ids\.json"):
        calibration_prompts(str(tmp_path / "ids.json"), None, vocab_size=5, longest=8)


def test_a_tokenizer_that_fails_at_a_text_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(NO_UNKNOWN))
    with pytest.raises(InputError, match=r"fails at the calibration text.*tokenizer\.json"):
        calibration_prompts(None, TokenizerFiles(files=(tmp_path / "tokenizer.json",)), vocab_size=5, longest=8)
