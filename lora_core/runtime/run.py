"""Answer prompts with the base and any adapters of an open session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from lora_core.errors import BundleError, UsageError
from lora_core.runtime.bench_report import Answer, RunReport
from lora_core.runtime.chat import require_system
from lora_core.runtime.generation import StopRules, generate
from lora_core.runtime.memory import measure
from lora_core.runtime.sampling import Sampling
from lora_core.runtime.session import Loaded, Session
from lora_core.runtime.tokenizer import TextTokenizer, prompted_as

if TYPE_CHECKING:
    from lora_core.bundle.bundle import Bundle


@attrs.frozen(kw_only=True)
class RunSettings:
    """How to answer. `raw` feeds the prompt as it is, else the chat template of the adapter or the model wraps it (if
    there is one), after the `system` message if given.
    """

    max_new_tokens: int = 128
    sampling: Sampling = attrs.field(factory=Sampling)
    raw: bool = False
    system: str | None = None


@attrs.frozen(kw_only=True)
class RunListener:
    """Who hears of a run while it goes on: notes, each load, the start of an answer, and its text piece by piece."""

    on_note: Callable[[str], None] = lambda _note: None
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

    All stay resident. Each adapter is prompted as the bundle says of it, or all with `tokenizer` if given. Raises
    `UsageError` for unknown adapters, for several at once that are prompted in different ways, for a prompt that does
    not fit and for a system message that a chat template does not take; `BundleError` for a bundle without a tokenizer
    and for a chat template that fails.
    """
    settings = settings or RunSettings()
    listener = listener or RunListener()
    if not prompts or not adapters:
        raise UsageError("There is nothing to run", remedy="Give at least one prompt and one adapter, or the base.")
    tokenizers = _tokenizers(session.bundle, adapters, tokenizer)
    _note_missing(tokenizers, settings, listener)
    encoded = {
        (adapter, prompt): _encode(session.bundle, adapter, tokenizers[adapter], prompt, settings)
        for adapter in tokenizers
        for prompt in prompts
    }
    before = measure()
    loads = []
    for adapter in dict.fromkeys(adapters):
        loads.append(session.load(adapter))
        listener.on_load(loads[-1])
    answers = [
        _answer(session, adapter, prompt, encoded[adapter, prompt], settings, tokenizers[adapter], listener)
        for prompt in prompts
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


def _tokenizers(
    bundle: Bundle, adapters: Sequence[str | None], given: TextTokenizer | None
) -> dict[str | None, TextTokenizer]:
    """Return what each adapter is prompted with; those that say nothing share the base's."""
    if given is not None:
        return dict.fromkeys(adapters, given)
    prompted = {adapter: prompted_as(bundle, adapter) for adapter in adapters}
    read = {name: TextTokenizer.of_bundle(bundle, name) for name in dict.fromkeys(prompted.values())}
    return {adapter: read[name] for adapter, name in prompted.items()}


def _note_missing(tokenizers: Mapping[str | None, TextTokenizer], settings: RunSettings, listener: RunListener) -> None:
    if not settings.raw and any(tokenizer.template is None for tokenizer in tokenizers.values()):
        listener.on_note("There is no chat template: the prompt is used as it is.")


def _encode(
    bundle: Bundle, adapter: str | None, tokenizer: TextTokenizer, prompt: str, settings: RunSettings
) -> list[int]:
    tokens = _tokens(tokenizer, prompt, settings)
    rows = bundle.manifest.base.vocab_size
    beyond = [token for token in tokens if rows is not None and token >= rows]
    if beyond:
        who = "The base" if adapter is None else f"Adapter {adapter!r}"
        raise BundleError(
            f"{who} is prompted with token {beyond[0]} ({tokenizer.decode(beyond[:1], skip_special_tokens=False)!r}), "
            f"and the base's embedding has {rows} rows",
            where=str(bundle.path),
            remedy="The adapter was trained on a base with more tokens: export that one.",
        )
    return tokens


def _tokens(tokenizer: TextTokenizer, prompt: str, settings: RunSettings) -> list[int]:
    if settings.raw and settings.system is not None:
        raise UsageError("A raw prompt has no place for a system message", remedy="Leave out --system or --raw.")
    messages = [{"role": "user", "content": prompt}]
    if settings.system is not None:
        require_system(tokenizer.template, messages)
        messages.insert(0, {"role": "system", "content": settings.system})
    if settings.raw or tokenizer.template is None:
        return tokenizer.encode(prompt)
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
        eos_ids=tokenizer.eos_ids or session.bundle.manifest.base.eos_ids,
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
