"""The tokens are those of transformers, whatever the files declare."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from lora_core.errors import ModelError
from lora_core.models.text.rules import read_rules
from lora_core.models.text.stored import StoredText
from lora_core.runtime.tokenizer import TextTokenizer
from tests.runtime.text_kinds import KINDS, byte_level, write

TEXTS = (
    "hello world",
    " hello  what is a clock\n\n12345",
    "<s>[INST] hello [/INST] the</s> world",
    "<s> hello<|end|> there <|tool|>world",
    "héllo 東京 🙂",
    "",
)
MESSAGES = [{"role": "user", "content": "hello <|end|> world"}, {"role": "assistant", "content": "a clock"}]


def theirs_of(directory: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of its own dependencies on import
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def ours_of(directory: Path) -> TextTokenizer:
    return TextTokenizer.read(directory, config=json.loads((directory / "config.json").read_text()))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_transformers(kind, tmp_path):
    directory = KINDS[kind](tmp_path / "model")
    theirs, ours = theirs_of(directory), ours_of(directory)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"], text
    chat = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(MESSAGES) == chat


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_begin_and_end_a_text_are_those_of_transformers(kind, tmp_path):
    directory = KINDS[kind](tmp_path / "model")
    theirs = theirs_of(directory)
    rules = read_rules(
        StoredText.in_directory(directory, ModelError), config=json.loads((directory / "config.json").read_text())
    )
    assert rules.bos_id == theirs.bos_token_id
    assert rules.eos_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))


@pytest.mark.parametrize(
    "kind", ["padding and truncation", "an added token that tokenizer.json lacks", "Llama's class"]
)
def test_the_file_that_is_written_needs_nothing_beside_it(kind, tmp_path):
    directory = KINDS[kind](tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    rules = read_rules(StoredText.in_directory(directory, ModelError), config=config)
    from tokenizers import Tokenizer

    alone = Tokenizer.from_buffer(rules.tokenizer)
    theirs = theirs_of(directory)
    for text in TEXTS:
        assert alone.encode(text).ids == theirs(text)["input_ids"], text


def test_a_file_with_nothing_to_change_is_kept_to_the_byte(tmp_path):
    directory = write(tmp_path / "model", byte_level())
    rules = read_rules(StoredText.in_directory(directory, ModelError), config={})
    assert rules.tokenizer == (directory / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("generation", "config", "eos_token", "expected"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 2}, None, (7, 8)),
        ({}, {"eos_token_id": 2}, None, (2,)),
        ({}, {}, None, ()),
        ({"eos_token_id": 2}, {}, "<|end|>", (2, 3)),
        ({"eos_token_id": 3}, {}, {"content": "<|end|>"}, (3,)),
        ({"eos_token_id": True}, {}, "no such token", (300,)),
    ],
)
def test_end_of_text_ids_come_from_all_who_know_them(tmp_path, generation, config, eos_token, expected):
    told = {"tokenizer_class": "PreTrainedTokenizerFast", **({"eos_token": eos_token} if eos_token else {})}
    write(tmp_path, byte_level(), config=told, generation_config=generation)
    rules = read_rules(StoredText.in_directory(tmp_path, ModelError), config=config)
    size = len(byte_level()["model"]["vocab"])
    assert rules.eos_ids == tuple(size if each == 300 else each for each in expected)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13648688\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_git_lfs_pointer_is_told_as_one(tmp_path, name):
    write(tmp_path, byte_level())
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ModelError, match=rf"git-lfs pointer.*git lfs pull.*{name}"):
        read_rules(StoredText.in_directory(tmp_path, ModelError), config={})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}', '{"version": "1.0", "model": {"type": "Unknown"}}'])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, content):
    write(tmp_path, byte_level())
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        read_rules(StoredText.in_directory(tmp_path, ModelError), config={})


def test_a_chat_template_of_another_form_is_named(tmp_path):
    write(tmp_path, byte_level(), config={"chat_template": [{"name": "default"}]}, template=None)
    with pytest.raises(ModelError, match=r"list of texts with a name.*tokenizer_config\.json: chat_template"):
        read_rules(StoredText.in_directory(tmp_path, ModelError), config={})
