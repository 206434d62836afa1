"""Answer prompts with the base and any adapters of an open session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from lora_core.errors import BundleError, UsageError
from lora_core.runtime.bench_report import Answer, RunReport
from lora_core.runtime.generation import StopRules, generate
from lora_core.runtime.memory import measure
from lora_core.runtime.sampling import Sampling
from lora_core.runtime.session import Loaded, Session
from lora_core.runtime.tokenizer import TOKENIZER_DIRECTORY, TextTokenizer


@attrs.frozen(kw_only=True)
class RunSettings:
    """How to answer. `raw` feeds the prompt as it is, else the model's chat template wraps it (if there is one), after
    the `system` message if given.
    """

    max_new_tokens: int = 128
    sampling: Sampling = attrs.field(factory=Sampling)
    raw: bool = False
    system: str | None = None


@attrs.frozen(kw_only=True)
class RunListener:
    """Who hears of a run while it goes on: each load, the start of an answer, and its text piece by piece."""

    on_load: Callable[[Loaded], None] = lambda _loaded: None
    on_answer: Callable[[str | None, str], None] = lambda _adapter, _prompt: None
    on_text: Callable[[str], None] = lambda _piece: None


def run(
    session: Session,
    prompts: Sequence[str],
    adapters: Sequence[str | None],
    settings: RunSettings | None = None,
    *,
    tokenizer: TextTokenizer | None = None,
    listener: RunListener | None = None,
) -> RunReport:
    """Load every adapter (None: the base), then answer every prompt with each, and report.

    All stay resident. The tokenizer is the bundle's unless given. Raises `UsageError` for unknown adapters and for a
    prompt that does not fit, `BundleError` for a bundle without a tokenizer.
    """
    settings = settings or RunSettings()
    listener = listener or RunListener()
    tokenizer = tokenizer or TextTokenizer.read(session.bundle.path / TOKENIZER_DIRECTORY)
    if not prompts or not adapters:
        raise UsageError("There is nothing to run", remedy="Give at least one prompt and one adapter, or the base.")
    encoded = [(prompt, _encode(tokenizer, prompt, settings)) for prompt in prompts]
    before = measure()
    loads = []
    for adapter in dict.fromkeys(adapters):
        loads.append(session.load(adapter))
        listener.on_load(loads[-1])
    answers = [
        _answer(session, adapter, prompt, tokens, settings, tokenizer, listener)
        for prompt, tokens in encoded
        for adapter in adapters
    ]
    return RunReport(before=before, loads=tuple(loads), answers=tuple(answers), facts=dict(session.facts))


def context_len(session: Session) -> int:
    """Return how many tokens the programs of `session` can hold; raises `BundleError` if nothing says so."""
    manifest = session.bundle.manifest
    told = (session.facts.get("context_len"), manifest.options.get("max_context_len"))
    # A caller's module is as it is, whatever options an export was given.
    asked = (manifest.base.context_len, *told) if manifest.base.family == "module" else told
    length = next((each for each in asked if isinstance(each, int)), None)
    if length is None:
        remedy = "Export a module of your own with ModuleModel(context_len=...)."
        raise BundleError("Nothing says how many tokens the programs can hold", where="manifest.json", remedy=remedy)
    return length


def _encode(tokenizer: TextTokenizer, prompt: str, settings: RunSettings) -> list[int]:
    if settings.raw or tokenizer.template is None:
        return tokenizer.encode(prompt)
    messages = [{"role": "user", "content": prompt}]
    if settings.system is not None:
        messages.insert(0, {"role": "system", "content": settings.system})
    return tokenizer.encode_chat(messages)


def _answer(
    session: Session,
    adapter: str | None,
    prompt: str,
    tokens: Sequence[int],
    settings: RunSettings,
    tokenizer: TextTokenizer,
    listener: RunListener,
) -> Answer:
    limits = StopRules(
        max_new_tokens=settings.max_new_tokens,
        context_len=context_len(session),
        eos_ids=session.bundle.manifest.base.eos_ids,
    )
    stream = tokenizer.stream()
    pieces: list[str] = []

    def show(piece: str) -> None:
        if piece:
            pieces.append(piece)
            listener.on_text(piece)

    listener.on_answer(adapter, prompt)
    generation = generate(
        session, adapter, tokens, limits, sampling=settings.sampling, on_token=lambda token: show(stream.push(token))
    )
    show(stream.finish())
    return Answer(adapter=adapter, prompt=prompt, text="".join(pieces), generation=generation)
