"""Running prompts over a session with a tokenizer, and the report."""

from __future__ import annotations

import json

import pytest

from lora_core.errors import BundleError, UsageError
from lora_core.runtime.chat import ChatTemplate
from lora_core.runtime.run import RunListener, RunSettings, run
from lora_core.runtime.tokenizer import TextTokenizer


class LetterTokenizer(TextTokenizer):
    """One token for each letter: token 0 is `a`."""

    def __init__(self, template=None):
        super().__init__(None, template)

    def encode(self, text, *, add_special_tokens=True):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, tokens, *, skip_special_tokens=True):
        return "".join(chr(ord("a") + token) for token in tokens)


def test_every_adapter_answers_every_prompt(session):
    report = run(session, ["a", "d"], [None, "ab"], RunSettings(max_new_tokens=3), tokenizer=LetterTokenizer())
    told = [(answer.prompt, answer.adapter, answer.text) for answer in report.answers]
    assert told == [("a", None, "bcd"), ("a", "ab", "ceg"), ("d", None, "efg"), ("d", "ab", "fhj")]


def test_all_adapters_are_loaded_before_the_first_answer(session):
    heard = []
    listener = RunListener(
        on_load=lambda loaded: heard.append(("load", loaded.adapter)),
        on_answer=lambda adapter, prompt: heard.append(("answer", adapter)),
    )
    settings = RunSettings(max_new_tokens=1)
    report = run(session, ["a"], ["ab", None], settings, tokenizer=LetterTokenizer(), listener=listener)
    assert heard == [("load", "ab"), ("load", None), ("answer", "ab"), ("answer", None)]
    assert [load.adapter for load in report.loads] == ["ab", None]


def test_text_is_told_as_it_comes_and_adds_up(session):
    pieces = []
    listener = RunListener(on_text=pieces.append)
    report = run(session, ["a"], [None], RunSettings(max_new_tokens=4), tokenizer=LetterTokenizer(), listener=listener)
    assert pieces == ["b", "c", "d", "e"]
    assert report.answers[0].text == "bcde"


def test_a_chat_template_wraps_the_prompt_unless_it_is_raw(session):
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}x{% endif %}"
    tokenizer = LetterTokenizer(ChatTemplate(source=source, special_tokens={}, where="test"))
    run(session, ["b"], [None], RunSettings(max_new_tokens=1, system="s"), tokenizer=tokenizer)
    run(session, ["b"], [None], RunSettings(max_new_tokens=1, raw=True), tokenizer=tokenizer)
    assert [tokens for _, tokens, _ in session.calls] == [(18, 1, 23), (1,)]


def test_the_report_is_plain_data_with_speed_and_memory(session):
    report = run(session, ["a"], [None], RunSettings(max_new_tokens=3), tokenizer=LetterTokenizer())
    told = json.loads(json.dumps(report.to_json()))
    answer = told["answers"][0]
    assert answer["tokens"] == [1, 2, 3]
    assert answer["decode_steps"] == 2
    assert answer["prefill_tokens_per_second"] > 0
    assert answer["decode_tokens_per_second"] > 0
    assert told["loads"][0]["anonymous"] > 0
    assert told["memory_before"]["resident"] > 0
    assert told["facts"]["runtime"] == "counting"


def test_an_answer_of_one_token_has_no_decode_speed(session):
    report = run(session, ["a"], [None], RunSettings(max_new_tokens=1), tokenizer=LetterTokenizer())
    assert report.answers[0].decode_tokens_per_second is None


def test_generation_ends_at_the_models_end_token(session):
    class Shifted(LetterTokenizer):
        def encode(self, text, *, add_special_tokens=True):
            return [58]

    report = run(session, ["a"], [None], tokenizer=Shifted())
    assert report.answers[0].generation.stopped_by == "eos"
    assert report.answers[0].generation.tokens == (59,)


def test_an_unknown_adapter_is_refused_before_any_answer(session):
    with pytest.raises(UsageError, match="nobody"):
        run(session, ["a"], [None, "nobody"], tokenizer=LetterTokenizer())
    assert session.calls == []


@pytest.mark.parametrize(("prompts", "adapters"), [([], [None]), (["a"], [])])
def test_nothing_to_run_is_refused(session, prompts, adapters):
    with pytest.raises(UsageError, match="nothing to run"):
        run(session, prompts, adapters, tokenizer=LetterTokenizer())


def test_a_bundle_without_a_tokenizer_is_refused(session):
    with pytest.raises(BundleError, match=r"no tokenizer\.json"):
        run(session, ["a"], [None])
