"""Measure a bundle on its runtime: load times, speed of every method, memory, and what changing adapters costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import attrs
import numpy as np

from lora_core.errors import UsageError
from lora_core.events import Emit, StageAdvanced, ignore, stage
from lora_core.runtime.memory import Memory, measure
from lora_core.runtime.run import context_len
from lora_core.runtime.session import Loaded, Session


@attrs.frozen(kw_only=True)
class BenchSettings:
    """Each method reads `prompt_tokens` and then takes `decode_tokens` single-token steps, in each of `rounds`."""

    prompt_tokens: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    decode_tokens: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    rounds: int = attrs.field(default=3, validator=attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class MethodSpeed:
    """The speed of one method (`adapter` None: the base): medians over all rounds, in seconds.

    `prefill_seconds` is the time to the first token's logits, `step_seconds` that of a further token. `overhead` is
    how much longer a further token takes than with the base, as a fraction; None for the base itself.
    """

    adapter: str | None
    prompt_tokens: int
    prefill_seconds: float
    step_seconds: float
    overhead: float | None = None

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens read in a second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """Further tokens in a second."""
        return 1 / self.step_seconds

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            **attrs.asdict(self),
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
        }


@attrs.frozen(kw_only=True)
class SwitchCost:
    """Seconds of the first step at position 0: `same` adapter as before, and `changed` adapter (medians)."""

    same: float
    changed: float

    @property
    def seconds(self) -> float:
        """What the change itself costs; at or below 0 it drowns in the noise."""
        return self.changed - self.same


@attrs.frozen(kw_only=True)
class BenchReport:
    """All measurements. `base_alone` is the base before any adapter was loaded; `switch` is None without adapters."""

    settings: BenchSettings
    facts: Mapping[str, Any]
    before: Memory
    loads: tuple[Loaded, ...]
    base_alone: MethodSpeed
    methods: tuple[MethodSpeed, ...]
    switch: SwitchCost | None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        switch = self.switch and {**attrs.asdict(self.switch), "seconds": self.switch.seconds}
        return {
            "settings": attrs.asdict(self.settings),
            "facts": dict(self.facts),
            "memory_before": attrs.asdict(self.before),
            "loads": [attrs.asdict(load) for load in self.loads],
            "base_alone": self.base_alone.to_json(),
            "methods": [method.to_json() for method in self.methods],
            "switch": switch,
        }


def bench(
    session: Session, adapters: Sequence[str], settings: BenchSettings | None = None, *, emit: Emit = ignore
) -> BenchReport:
    """Load the base and then `adapters`, and measure. The session must not have loaded anything.

    Methods take turns in every round, so that a slower or faster machine in between concerns all of them. Raises
    `UsageError` if the tokens do not fit the context.
    """
    settings = settings or BenchSettings()
    before = measure()
    loads = [session.load(None)]
    tokens = _tokens(session, settings)
    with stage(emit, "Measure the base alone"):
        base_alone = _speeds(session, [None], tokens, settings, emit, "Measure the base alone")[0]
    with stage(emit, "Load the adapters"):
        loads += [session.load(adapter) for adapter in adapters]
    with stage(emit, "Measure every method"):
        methods = _speeds(session, [None, *adapters], tokens, settings, emit, "Measure every method")
    with stage(emit, "Measure changes of adapter"):
        switch = _switch_cost(session, adapters, tokens, settings) if adapters else None
    return BenchReport(
        settings=settings,
        facts=dict(session.facts),
        before=before,
        loads=tuple(loads),
        base_alone=base_alone,
        methods=tuple(methods),
        switch=switch,
    )


def _tokens(session: Session, settings: BenchSettings) -> list[int]:
    vocabulary = session.bundle.manifest.base.vocab_size
    if vocabulary is None:
        raise UsageError(
            "The bundle does not say how large its vocabulary is, so there are no tokens to measure with",
            remedy="Export a module of your own with ModuleModel(vocab_size=...).",
        )
    count = settings.prompt_tokens + settings.decode_tokens
    if count > context_len(session):
        raise UsageError(
            f"{settings.prompt_tokens} prompt tokens and {settings.decode_tokens} more do not fit in the context of "
            f"{context_len(session)} tokens",
            remedy="Measure with fewer.",
        )
    return [int(token) for token in np.random.default_rng(0).integers(0, vocabulary, count)]


def _speeds(
    session: Session,
    adapters: Sequence[str | None],
    tokens: Sequence[int],
    settings: BenchSettings,
    emit: Emit,
    name: str,
) -> list[MethodSpeed]:
    prefills: dict[str | None, list[float]] = {adapter: [] for adapter in adapters}
    steps: dict[str | None, list[float]] = {adapter: [] for adapter in adapters}
    for done in range(settings.rounds):
        for adapter in adapters:
            prefill, *further = _round(session, adapter, tokens, settings)
            prefills[adapter].append(prefill)
            steps[adapter] += further
        emit(StageAdvanced(stage=name, done=done + 1, total=settings.rounds))
    base = median(steps[None])
    return [
        MethodSpeed(
            adapter=adapter,
            prompt_tokens=settings.prompt_tokens,
            prefill_seconds=median(prefills[adapter]),
            step_seconds=median(steps[adapter]),
            overhead=None if adapter is None else median(steps[adapter]) / base - 1,
        )
        for adapter in adapters
    ]


def _round(session: Session, adapter: str | None, tokens: Sequence[int], settings: BenchSettings) -> Iterator[float]:
    count = settings.prompt_tokens
    yield _seconds(session, adapter, tokens[:count], 0)
    for position in range(count, len(tokens)):
        yield _seconds(session, adapter, tokens[position : position + 1], position)


def _switch_cost(
    session: Session, adapters: Sequence[str], tokens: Sequence[int], settings: BenchSettings
) -> SwitchCost:
    same: list[float] = []
    changed: list[float] = []
    for _ in range(settings.rounds):
        for adapter in (None, *adapters):
            changed.append(_seconds(session, adapter, tokens[:1], 0))
            same += [_seconds(session, adapter, tokens[:1], 0) for _ in range(2)]
    return SwitchCost(same=median(same), changed=median(changed))


def _seconds(session: Session, adapter: str | None, tokens: Sequence[int], position: int) -> float:
    start = time.perf_counter()
    session.step(adapter, tokens, position)
    return time.perf_counter() - start
