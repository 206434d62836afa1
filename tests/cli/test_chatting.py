"""A conversation on the terminal."""

from __future__ import annotations

from typing import Any

from lora_core.cli.chatting import HELP, chat
from lora_core.errors import UsageError
from lora_core.runtime.conversation import Turn
from lora_core.runtime.generation import Generation


class Told:
    """Remembers results and notes instead of writing them."""

    closed = False

    def __init__(self) -> None:
        self.text = ""
        self.notes: list[str] = []

    def result(self, text: str, *, end: str = "\n") -> None:
        self.text += text + end

    def note(self, text: str) -> None:
        self.notes.append(text)


class Echo:
    """A conversation whose answers repeat what was said, with the adapter's name before it."""

    def __init__(self) -> None:
        self.adapter: str | None = None
        self.forgotten = 0

    def use(self, adapter: str | None) -> None:
        if adapter == "nobody":
            raise UsageError("The bundle has no adapter 'nobody'")
        self.adapter = adapter

    def forget(self) -> None:
        self.forgotten += 1

    def say(self, text: str, on_text: Any) -> Turn:
        answer = f"{self.adapter or 'base'}: {text}"
        on_text(answer)
        made = Generation(
            prompt_tokens=9,
            tokens=(1, 2),
            stopped_by="eos",
            prefill_seconds=1.0,
            first_token_seconds=1.0,
            decode_seconds=0.5,
            decode_steps=2,
        )
        return Turn(adapter=self.adapter, text=answer, held=4, generation=made)


def talk(*lines: str) -> tuple[Told, Echo]:
    told, echo = Told(), Echo()
    chat(told, echo, lines)  # type: ignore[arg-type]
    return told, echo


def test_each_line_is_answered_and_an_empty_one_is_not_said():
    told, _ = talk("hello\n", "\n", "again\n")
    assert told.text == "base: hello\nbase: again\n"
    assert told.notes == [HELP, *["[base: 5 of 9 prompt tokens read, 4.0 tokens/s]"] * 2]


def test_an_adapter_goes_on_with_the_conversation_and_base_is_none():
    told, _ = talk("/adapter pirate", "hello", "/adapter base", "hello")
    assert told.text == "pirate: hello\nbase: hello\n"


def test_what_goes_wrong_in_a_line_is_told_and_the_next_is_answered():
    told, _ = talk("/adapter nobody", "hello")
    assert "The bundle has no adapter 'nobody'" in told.notes[1]
    assert told.text == "base: hello\n"


def test_a_new_conversation_forgets():
    assert talk("/new")[1].forgotten == 1


def test_nothing_is_answered_after_the_end():
    assert talk("/quit", "hello")[0].text == ""


def test_other_words_with_a_slash_are_explained():
    told, _ = talk("/help", "/adapter")
    assert told.notes == [HELP] * 3
