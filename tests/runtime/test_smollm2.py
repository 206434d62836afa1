"""The real tokenizer and chat template of SmolLM2, against transformers."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from lora_core.runtime.tokenizer import TextTokenizer

MODEL = Path(__file__).parents[2] / "build" / "models" / "SmolLM2-135M-Instruct"
TEXTS = [
    "What is the capital of France?",
    "  two  spaces\tand\n\nlines  ",
    "Grüße, 東京 🙂🙃 naïve café",
    "def f(x):\n    return x ** 2 <|im_end|> 3.14159",
    "",
]
CONVERSATIONS = [
    [{"role": "user", "content": TEXTS[0]}],
    [{"role": "system", "content": "Shout."}, {"role": "user", "content": TEXTS[2]}],
    [{"role": "user", "content": TEXTS[3]}, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "so?"}],
]

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of its own dependencies on import
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def ours():
    return TextTokenizer.read(MODEL)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_text_are_those_of_transformers(ours, theirs, text):
    tokens = theirs(text)["input_ids"]
    assert ours.encode(text) == tokens
    assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)
    assert "".join(ours.stream_all(tokens)) == theirs.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_chat_prompts_are_those_of_transformers(ours, theirs, messages):
    assert ours.template.render(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert ours.encode_chat(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
