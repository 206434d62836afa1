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


SYSTEM = RunSettings(max_new_tokens=1, system="s")
WITHOUT = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"


def test_a_system_message_needs_a_template(session):
    with pytest.raises(UsageError, match="no chat template, so a system message has no place"):
        run(session, ["b"], [None], SYSTEM, tokenizer=LetterTokenizer())


def test_a_system_message_that_the_template_leaves_out_is_refused(session):
    tokenizer = LetterTokenizer(ChatTemplate(source=WITHOUT, special_tokens={}, where="the template"))
    with pytest.raises(UsageError, match=r"leaves the system message out.*the template"):
        run(session, ["b"], [None], SYSTEM, tokenizer=tokenizer)


def test_a_template_that_refuses_a_system_message_is_named(session):
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}b"
    tokenizer = LetterTokenizer(ChatTemplate(source=source, special_tokens={}, where="the template"))
    with pytest.raises(BundleError, match=r"no system.*the template"):
        run(session, ["b"], [None], SYSTEM, tokenizer=tokenizer)


def test_a_raw_prompt_takes_no_system_message(session):
    with pytest.raises(UsageError, match="Leave out --system or --raw"):
        run(session, ["b"], [None], RunSettings(raw=True, system="s"), tokenizer=LetterTokenizer())


@pytest.mark.parametrize(("raw", "count"), [(False, 1), (True, 0)])
def test_that_there_is_no_template_is_noted_once(session, raw, count):
    notes = []
    settings = RunSettings(max_new_tokens=1, raw=raw)
    listener = RunListener(on_note=notes.append)
    run(session, ["a", "b"], [None, "ab"], settings, tokenizer=LetterTokenizer(), listener=listener)
    assert len(notes) == count


def prompts(session):
    return [tokens for _, tokens, position in session.calls if position == 0]


def test_each_adapter_is_prompted_as_the_bundle_says(own_prompting):
    report = run(own_prompting, ["a"], [None, "ab", "abc"], RunSettings(max_new_tokens=3))
    assert prompts(own_prompting) == [(40, 0), (0, 41), (40, 0)]
    assert [answer.generation.stopped_by for answer in report.answers] == ["max-new-tokens", "eos", "max-new-tokens"]


def test_an_adapter_at_a_strength_is_prompted_as_the_adapter(own_prompting):
    run(own_prompting, ["a"], ["ab@0.5", "abc@0.5"], RunSettings(max_new_tokens=1))
    assert prompts(own_prompting) == [(0, 41), (40, 0)]


def test_adapters_that_are_prompted_in_different_ways_do_not_answer_together(own_prompting):
    with pytest.raises(UsageError, match="'ab\\+abc' are prompted in different ways"):
        run(own_prompting, ["a"], ["ab+abc"])


def test_a_token_without_a_row_in_the_base_is_refused(session):
    class Beyond(LetterTokenizer):
        def encode(self, text, *, add_special_tokens=True):
            return [0, 64]

    with pytest.raises(BundleError, match=r"prompted with token 64.*embedding has 64 rows"):
        run(session, ["a"], ["ab"], tokenizer=Beyond())


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
