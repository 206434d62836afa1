"""`lora-core run`: generate text from a bundle."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_core.cli.backend_command import SessionCommand
from lora_core.errors import Problem, UsageError

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core.runtime.bench_report import RunReport
    from lora_core.runtime.run import RunSettings
    from lora_core.runtime.session import Session

BASE = "base"


def run(
    console: Console,
    *,
    bundle: Path,
    adapter: tuple[str, ...],
    prompt: tuple[str, ...],
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    raw: bool,
    chat: bool,
    options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Answer every prompt with every adapter: text on stdout as it comes, speed and memory on stderr at the end.

    With `chat`, what is said after the prompts comes from stdin.
    """
    import lora_core
    from lora_core.bundle.store import open_bundle
    from lora_core.events import stage
    from lora_core.runtime.run import RunListener, RunSettings
    from lora_core.runtime.run import run as answer
    from lora_core.runtime.sampling import Sampling
    from lora_core.runtime.selection import require_selectable

    settings = RunSettings(
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        raw=raw,
        system=system,
    )
    _check(adapter, prompt, raw=raw, chat=chat, as_json=as_json)
    names = [None if name == BASE else name for name in adapter or (BASE,)]
    require_selectable(names, console.hub.spec_of(open_bundle(bundle)))
    with stage(console.emit, "open the bundle"):
        session = lora_core.open(bundle, options=options, hub=console.hub)
    with session:
        if chat:
            _chat(console, session, names[0], prompt, settings)
            return
        listener = (
            RunListener(on_note=console.note) if as_json else _listener(console, titles=len(names) * len(prompt) > 1)
        )
        report = answer(session, prompt, names, settings, listener=listener)
    if as_json:
        console.json(report.to_json())
    else:
        console.result("")
        _summarize(console, report)


def _check(adapter: tuple[str, ...], prompt: tuple[str, ...], *, raw: bool, chat: bool, as_json: bool) -> None:
    if not chat:
        if not prompt:
            raise UsageError("There is nothing to run", remedy="Give --prompt, or --chat for a conversation.")
        return
    problems = [
        Problem(what=f"A conversation {what}", remedy=remedy)
        for wrong, what, remedy in (
            (len(adapter) > 1, "begins with one adapter", "Give one --adapter; /adapter NAME changes it."),
            (raw, "needs the chat template", "Leave out --raw or --chat."),
            (as_json, "is not printed as JSON", "Leave out --json or --chat."),
        )
        if wrong
    ]
    if problems:
        raise UsageError(problems)


def _chat(
    console: Console, session: Session, adapter: str | None, prompts: Sequence[str], settings: RunSettings
) -> None:
    from lora_core.cli.chatting import chat
    from lora_core.runtime.conversation import Conversation

    conversation = Conversation(session, settings)
    conversation.use(adapter)
    chat(console, conversation, chain(prompts, sys.stdin))


def _listener(console: Console, *, titles: bool) -> Any:
    from lora_core.runtime.run import RunListener

    first = True

    def on_answer(adapter: str | None, prompt: str) -> None:
        nonlocal first
        if titles:
            console.result(f"{'' if first else chr(10) * 2}== {adapter or BASE}: {prompt}")
        first = False

    def on_text(piece: str) -> None:
        console.result(piece, end="")
        if console.closed:
            # Nobody reads what would still be generated.
            raise BrokenPipeError

    return RunListener(on_note=console.note, on_answer=on_answer, on_text=on_text)


def _summarize(console: Console, report: RunReport) -> None:
    from lora_core.cli.table import size, table

    loads = [
        [load.adapter or BASE, load.seconds, size(load.resident), size(load.anonymous), size(load.file_backed)]
        for load in report.loads
    ]
    before = ["before loading", None, size(report.before.resident), size(report.before.anonymous), None]
    console.note(table(["loaded", "seconds", "resident", "anonymous", "file-backed"], [before, *loads]))
    speeds = [
        [
            answer.adapter or BASE,
            answer.generation.prompt_tokens,
            len(answer.generation.tokens),
            answer.generation.first_token_seconds,
            answer.decode_tokens_per_second,
            answer.generation.stopped_by,
        ]
        for answer in report.answers
    ]
    console.note(table(["answer", "prompt", "tokens", "first token s", "tokens/s", "stopped by"], speeds))
    console.note("; ".join(f"{fact}: {value}" for fact, value in report.facts.items()))


command = SessionCommand(
    "run",
    callback=run,
    help="Generate text from BUNDLE on its backend's runtime.",
    params=[
        click.Argument(["bundle"], type=click.Path(file_okay=False, path_type=Path)),
        click.Option(
            ["--adapter"],
            multiple=True,
            metavar="NAME",
            help="Adapter to use; `base` for none (default). Where the backend can: NAME@STRENGTH, or several at once "
            "as NAME:STRENGTH+NAME:STRENGTH. Repeatable.",
        ),
        click.Option(["--prompt"], multiple=True, help="What to ask. Repeatable."),
        click.Option(
            ["--chat"], is_flag=True, help="Hold a conversation: each line of stdin is said, with all before."
        ),
        click.Option(["--system"], help="System message, for models with a chat template."),
        click.Option(["--max-new-tokens"], type=click.IntRange(min=1), default=128, show_default=True),
        click.Option(
            ["--temperature"], type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy."
        ),
        click.Option(
            ["--top-p"],
            type=click.FloatRange(min=0, max=1, min_open=True),
            default=1.0,
            show_default=True,
            help="Sample from the most likely tokens that reach this probability.",
        ),
        click.Option(["--seed"], type=click.IntRange(min=0), default=0, show_default=True),
        click.Option(["--raw"], is_flag=True, help="Feed the prompt as it is, without the chat template."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
)
