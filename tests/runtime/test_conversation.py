"""Conversations over a session."""

from __future__ import annotations

import pytest

from lora_core.errors import UsageError
from lora_core.runtime.chat import ChatTemplate
from lora_core.runtime.conversation import Conversation
from lora_core.runtime.run import RunSettings
from tests.runtime.test_run import LetterTokenizer

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
SETTINGS = RunSettings(max_new_tokens=2)


def letters(template: str | None = TEMPLATE) -> LetterTokenizer:
    return LetterTokenizer(None if template is None else ChatTemplate(source=template, special_tokens={}, where="test"))


def conversation(session, settings: RunSettings = SETTINGS) -> Conversation:
    return Conversation(session, settings, tokenizer=letters())


def test_an_answer_sees_all_that_was_said_before(session):
    talk = conversation(session)
    assert [talk.say("a").text, talk.say("f").text] == ["bc", "gh"]
    assert [message["content"] for message in talk.messages] == ["a", "bc", "f", "gh"]


def test_what_the_cache_holds_is_not_read_again(session):
    talk = conversation(session)
    talk.say("a")
    session.calls.clear()
    turn = talk.say("f")
    # `a` and `b` were fed; `c` was chosen as the last token and was not.
    assert turn.held == 2
    assert session.calls[0] == (None, (2, 5), 2)


def test_another_adapter_reads_the_whole_conversation(session):
    talk = conversation(session)
    talk.say("a")
    talk.use("ab")
    session.calls.clear()
    assert talk.say("f").text == "hj"
    assert session.calls[0] == ("ab", (0, 1, 2, 5), 0)


def test_a_new_conversation_keeps_the_system_message_alone(session):
    talk = conversation(session, RunSettings(max_new_tokens=1, system="s"))
    talk.say("a")
    talk.forget()
    assert [message["content"] for message in talk.messages] == ["s"]


def test_a_turn_that_does_not_fit_leaves_the_conversation_as_it_was(session):
    talk = conversation(session)
    talk.say("a")
    before = talk.messages
    with pytest.raises(UsageError, match="was exported for 32 in all"):
        talk.say("z" * 40)
    assert talk.messages == before
    assert talk.say("f").text == "gh"


def test_a_conversation_needs_a_chat_template(session):
    with pytest.raises(UsageError, match="no chat template"):
        Conversation(session, SETTINGS, tokenizer=letters(None)).use("ab")


def test_an_unknown_adapter_is_refused_and_the_other_goes_on(session):
    talk = conversation(session)
    talk.use("ab")
    with pytest.raises(UsageError, match="no adapter 'nobody'"):
        talk.use("nobody")
    assert talk.adapter == "ab"


def test_an_adapter_at_a_strength_talks_as_the_adapter_is_prompted(own_prompting):
    talk = Conversation(own_prompting, SETTINGS)
    talk.use("ab@0.5")
    talk.say("a")
    assert own_prompting.calls[0] == ("ab@0.5", (0, 41), 0)
