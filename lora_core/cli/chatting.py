"""A conversation on the terminal: a line is what is said, a line with a slash tells the program something."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_core.errors import LoraCoreError

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core.runtime.conversation import Conversation

BASE = "base"
HELP = "/adapter NAME: who answers (`base` for none). /new: forget what was said. /quit: end."


def chat(console: Console, conversation: Conversation, lines: Iterable[str]) -> None:
    """Answer each of `lines` on stdout until one says /quit, or they end. What goes wrong in one ends only that."""
    console.note(HELP)
    for line in lines:
        said = line.strip()
        if said == "/quit":
            return
        try:
            if said.startswith("/"):
                _tell(console, conversation, said)
            elif said:
                _answer(console, conversation, said)
        except LoraCoreError as error:
            console.note(str(error))


def _tell(console: Console, conversation: Conversation, said: str) -> None:
    command, _, name = said.partition(" ")
    if command == "/adapter" and name.strip():
        conversation.use(None if name.strip() == BASE else name.strip())
        console.note(f"{conversation.adapter or BASE} answers.")
    elif command == "/new":
        conversation.forget()
        console.note("A new conversation.")
    else:
        console.note(HELP)


def _answer(console: Console, conversation: Conversation, said: str) -> None:
    def on_text(piece: str) -> None:
        console.result(piece, end="")
        if console.closed:
            raise BrokenPipeError  # nobody reads what would still be generated

    turn = conversation.say(said, on_text)
    console.result("")
    made = turn.generation
    speed = f"{made.decode_steps / made.decode_seconds:.1f} tokens/s" if made.decode_seconds else "1 token"
    read = made.prompt_tokens - turn.held
    console.note(f"[{turn.adapter or BASE}: {read} of {made.prompt_tokens} prompt tokens read, {speed}]")
