"""Tokenizers that are stored for sentencepiece alone: made a tokenizer.json when exported, as transformers makes it."""

import json

import pytest
import sentencepiece

from lora_core.errors import ModelError
from lora_core.models.hf import HfModelSource
from lora_core.models.text import converting
from lora_core.models.text.tokenizer import parse_tokenizer
from lora_core.pipeline.prompting import BaseText
from lora_core.testing.families import write_tiny_family

SENTENCES = ["hello world", "what is a clock", "the quick brown fox", "a lazy dog", "hello the clock"]
TEXT = "hello lazy clock"


@pytest.fixture
def base(tmp_path):
    directory = write_tiny_family(tmp_path / "base", "llama", vocab_size=64)
    with (directory / "tokenizer.model").open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_writer=out,
            vocab_size=48,
            model_type="bpe",
            minloglevel=3,
        )
    told = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
    return directory


def test_the_bundle_gets_a_tokenizer_that_gives_the_tokens_of_transformers(base):
    model = HfModelSource().open(str(base))
    text, written = BaseText.of_model(model)
    tokenizer = parse_tokenizer(written.files["tokenizer/tokenizer.json"], "tokenizer.json", ModelError)
    theirs = model.reference_text(None)
    assert tuple(tokenizer.encode(TEXT).ids) == theirs.encode(TEXT)
    assert len(theirs.encode(TEXT)) > 3
    assert theirs.eos_id in text.prompting.eos_ids
    assert "The bundle's tokenizer.json is made of tokenizer.model by transformers' own converter." in model.notes


def test_without_transformers_the_export_says_what_is_missing(base, monkeypatch):
    monkeypatch.setattr(converting.importlib.util, "find_spec", lambda name: None)
    model = HfModelSource().open(str(base))
    assert BaseText.of_model(model)[0].prompting is None
    why = "transformers, which would convert tokenizer.model, is not installed"
    assert f"There is no tokenizer.json to write: {why}." in model.notes


def test_what_transformers_cannot_convert_is_told_and_the_export_goes_on(base):
    (base / "tokenizer.model").write_bytes(b"no tokenizer")
    model = HfModelSource().open(str(base))
    assert BaseText.of_model(model)[0].prompting is None
    assert any("transformers cannot convert tokenizer.model: " in note for note in model.notes)


def test_opening_a_base_converts_nothing(base, monkeypatch):
    monkeypatch.setattr("lora_core.models.hf.convert", None)
    assert HfModelSource().open(str(base)).summary.eos_ids == (2,)
