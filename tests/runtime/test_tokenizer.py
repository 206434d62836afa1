"""Text to tokens and back, and pieces of text as tokens come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.errors import BundleError
from lora_core.runtime.tokenizer import TextTokenizer

CHARACTER = "🙂"


@pytest.fixture(scope="session", params=["byte_tokenizer", "spaced_tokenizer"])
def tokenizer(request):
    return TextTokenizer(request.getfixturevalue(request.param))


def test_text_comes_back(byte_tokenizer):
    tokenizer = TextTokenizer(byte_tokenizer)
    text = "Ärger, 東京 🙂 at  two spaces\nand a line"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_left_out_of_the_text_unless_asked_for(byte_tokenizer):
    tokenizer = TextTokenizer(byte_tokenizer)
    tokens = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert tokenizer.decode(tokens) == "hi"
    assert tokenizer.decode(tokens, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"


def test_no_piece_ends_inside_a_character(byte_tokenizer):
    tokenizer = TextTokenizer(byte_tokenizer)
    tokens = tokenizer.encode(f"a{CHARACTER}b")
    assert len(tokens) > 3, "the character must take several tokens"
    pieces = [piece for piece in tokenizer.stream_all(tokens) if piece]
    assert pieces == ["a", CHARACTER, "b"]


def test_an_unfinished_character_is_shown_at_the_end(byte_tokenizer):
    tokenizer = TextTokenizer(byte_tokenizer)
    tokens = tokenizer.encode(f"a{CHARACTER}")[:-1]
    *pieces, last = tokenizer.stream_all(tokens)
    assert "".join(pieces) == "a"
    assert last == tokenizer.decode(tokens)[1:] == "�"


def test_words_keep_the_space_between_them(spaced_tokenizer):
    tokenizer = TextTokenizer(spaced_tokenizer)
    tokens = tokenizer.encode("The quick brown")
    assert "".join(tokenizer.stream_all(tokens)) == "The quick brown"


@settings(max_examples=300)
@given(data=st.data())
def test_pieces_of_text_add_up_to_the_text(tokenizer, data):
    text = data.draw(st.text(max_size=40))
    tokens = tokenizer.encode(text)
    assert "".join(tokenizer.stream_all(tokens)) == tokenizer.decode(tokens)


@settings(max_examples=300)
@given(tokens=st.lists(st.integers(3, 299), max_size=30))
def test_pieces_of_any_bytes_add_up_to_the_text(byte_tokenizer, tokens):
    tokenizer = TextTokenizer(byte_tokenizer)
    assert "".join(tokenizer.stream_all(tokens)) == tokenizer.decode(tokens)


def test_a_directory_is_read_with_its_template(byte_tokenizer, tmp_path: Path):
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}!"}))
    tokenizer = TextTokenizer.read(tmp_path)
    assert tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "hi"}])) == "hi!"


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(BundleError, match=r"no tokenizer\.json"):
        TextTokenizer.read(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        TextTokenizer.read(tmp_path)


def test_a_chat_without_a_template_is_refused(byte_tokenizer):
    with pytest.raises(BundleError, match="no chat template"):
        TextTokenizer(byte_tokenizer).encode_chat([{"role": "user", "content": "hi"}])
