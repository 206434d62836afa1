"""Checks of a bundle's numbers, against the eager reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.reading import read_adapters
from lora_core.bundle.bundle import Bundle
from lora_core.errors import UsageError
from lora_core.limits import FLOAT32, Limits, limits_for
from lora_core.models.reference_model import Trace
from lora_core.pipeline.given import adapter_formats
from lora_core.runtime.session import Session
from lora_core.testing.check import Check, expect_refusal, runs
from lora_core.testing.materials import ADAPTERS, CONTEXT_LEN
from lora_core.testing.verdict import Broken, Unchecked
from lora_core.testing.workshop import Workshop
from lora_core.verification import judging
from lora_core.verification.finding import Finding
from lora_core.verification.kv_cache import follow
from lora_core.verification.numbers import compare, effect

if TYPE_CHECKING:
    import numpy.typing as npt

    Rows = npt.NDArray[np.float32]

EXACT = attrs.evolve(
    FLOAT32,
    max_error=1e-4,
    mean_error=1e-5,
    effect=1e-3,
    reason="Two layers in float32: a decoder in NumPy measures 2e-6 of the spread, and 7e-4 with LoRA in float16.",
)
"""What a policy without any quantization keeps to with the tiny model, unless the backend states limits of its own."""
BEYOND_FLOAT32 = 1e-4
"""Quantized weights are further from the reference than this share of the spread, weights in float32 never."""
PROMPTS = ((0, 5), (0, 20), (1, 1), (1, 11))
"""Text and length of a prompt; what is left of the text is fed token by token."""
PIECES = ((1,) * CONTEXT_LEN, (3, 1, 7, 2, 9, 10), (CONTEXT_LEN,), (31, 1))


def base_computes(workshop: Workshop) -> None:
    """Compare the base's logits with the reference's: prompts of several lengths, then token after token."""
    for policy in workshop.policies:
        bundle = workshop.full(policy)
        with workshop.opened(bundle) as session:
            traces = reference_traces(workshop, session, None)
            judge_logits(workshop, bundle, session, None, traces)


def adapters_compute(workshop: Workshop) -> None:
    """Compare every adapter's logits, and what it changes, with the reference's."""
    adapters = _adapters(workshop)
    for policy in workshop.policies:
        bundle = workshop.full(policy)
        with workshop.opened(bundle) as session:
            traces = {name: reference_traces(workshop, session, name) for name in (None, *ADAPTERS)}
            base = [_follow(session, None, trace) for trace in traces[None]]
            for name in ADAPTERS:
                logits = judge_logits(workshop, bundle, session, name, traces[name])
                measured = effect((traces[None], traces[name]), (base, logits))
                changed = not all(np.array_equal(one, other) for one, other in zip(base, logits, strict=True))
                limits = _limits(workshop, bundle)
                finding = judging.takes_effect(
                    name, changed=changed, adapter=adapters[name], measured=measured, limits=limits
                )
                _expect(finding, bundle, name)


def pieces_compute(workshop: Workshop) -> None:
    """Feed one text in pieces of several lengths, down to single tokens: the same logits as for the whole."""
    bundle = workshop.full()
    text = workshop.materials.texts[0]
    with workshop.opened(bundle) as session:
        for name in (None, ADAPTERS[0]):
            for pieces in PIECES:
                ends = np.minimum(np.cumsum(pieces), _room(session))
                ends = ends[np.diff(ends, prepend=0) > 0]
                rows = [
                    np.array(session.step(name, text[start:end], int(start)), copy=True)
                    for start, end in zip((0, *ends[:-1]), ends, strict=True)
                ]
                wanted = _reference(workshop, name)[0][ends - 1]
                trace = Trace(prompt=text[: ends[0]], tokens=(0,) * len(rows), logits=wanted)
                limits = _limits(workshop, bundle)
                finding = judging.logits("", compare([trace], [np.stack(rows)], tie=limits.tie), limits)
                _expect(finding, bundle, f"{_named(name)}, fed in pieces of {', '.join(map(str, pieces[:6]))}")


def context_is_what_was_asked(workshop: Workshop) -> None:
    """Fill the context to its last position, and go beyond it."""
    bundle = workshop.full()
    text = workshop.materials.texts[0]
    with workshop.opened(bundle) as session:
        session.load(None)
        length = session.facts.get("context_len")
        if not isinstance(length, int):
            raise Broken(f"`facts` says that {length!r} tokens fit: `context_len` must be an integer")
        if workshop.context_len is not None and length != workshop.context_len:
            raise Broken(f"A context of {workshop.context_len} tokens was asked for, and `facts` says {length}")
        tokens = (text * (length // len(text) + 1))[:length]
        session.step(None, tokens, 0)
        expect_refusal(UsageError, lambda: session.step(None, tokens[:1], length), "A token beyond the context")
        session.reset()
        what = "A prompt of one token more than the context"
        expect_refusal(UsageError, lambda: session.step(None, (*tokens, 1), 0), what)


def quantization_is_real(workshop: Workshop) -> None:
    """Look for the error that quantization makes: logits as exact as float32's are those of weights in float32."""
    for policy in workshop.policies:
        bundle = workshop.full(policy)
        if all(bundle.manifest.policy.get(part) is None for part in ("linear", "output")):
            continue
        with workshop.opened(bundle) as session:
            traces = reference_traces(workshop, session, None)[:1]
            numbers = compare(traces, [_follow(session, None, trace) for trace in traces], tie=0)
        error = numbers.max_error / numbers.spread
        if error < BEYOND_FLOAT32:
            raise Broken(f"With policy {policy}, logits are within {error:.2g} of float32's: nothing is quantized")


def judge_logits(
    workshop: Workshop, bundle: Bundle, session: Session, name: str | None, traces: Sequence[Trace]
) -> list[Rows]:
    """Return the logits along `traces`; raises `Broken` if they are beyond the policy's limits."""
    logits = [_follow(session, name, trace) for trace in traces]
    limits = _limits(workshop, bundle)
    _expect(judging.logits(_named(name), compare(traces, logits, tie=limits.tie), limits), bundle, _named(name))
    return logits


def _follow(session: Session, name: str | None, trace: Trace) -> Rows:
    rows = follow(session, name, trace, len(trace.tokens))
    if rows.shape != trace.logits.shape or not np.isfinite(rows).all():
        raise Broken(f"The logits of {_named(name)} have shape {rows.shape[1:]}, or are not all finite")
    return rows


def _expect(finding: Finding, bundle: Bundle, subject: str) -> None:
    if finding.failed:
        raise Broken(f"With policy {bundle.manifest.policy.get('name')}, {subject}: {finding.detail}")


def _limits(workshop: Workshop, bundle: Bundle) -> Limits:
    limits = limits_for(bundle.manifest.policy, workshop.spec.limits)
    # The kit's texts are drawn: how far greedy generation would repeat them means nothing.
    return attrs.evolve(EXACT if limits == FLOAT32 else limits, greedy=0.0)


def reference_traces(workshop: Workshop, session: Session, name: str | None) -> list[Trace]:
    """Return the reference's logits after each prompt and each further token; what follows the last is never fed."""
    room = _room(session)
    traces = []
    for text, length in PROMPTS:
        tokens = workshop.materials.texts[text][:room]
        logits = _reference(workshop, name)[text][min(length, room) - 1 : room]
        traces.append(Trace(prompt=tokens[:length], tokens=(*tokens[length:], 0), logits=logits))
    return traces


def _room(session: Session) -> int:
    """Return how many tokens fit; whether that is what was asked for is another check's question."""
    session.load(None)
    told = session.facts.get("context_len")
    return told if isinstance(told, int) and 0 < told < CONTEXT_LEN else CONTEXT_LEN


def _reference(workshop: Workshop, name: str | None) -> tuple[Rows, ...]:
    try:
        return workshop.materials.logits[name]
    except ImportError as error:
        raise Unchecked(
            f"The eager reference needs torch and ExecuTorch (pip install lora-core[models]): {error}"
        ) from (error)


def _adapters(workshop: Workshop) -> dict[str, Adapter]:
    references = [workshop.materials.adapter(name) for name in ADAPTERS]
    read = read_adapters(references, workshop.materials.handle.summary, adapter_formats(workshop.hub))
    return {adapter.name: adapter for adapter in read}


def _named(name: str | None) -> str:
    return "the base" if name is None else name


def _checks() -> Iterator[Check]:
    yield Check(
        id="base-numbers",
        claim="The base's logits are the eager reference's, within the policy's limits.",
        run=base_computes,
        applies=runs,
    )
    yield Check(
        id="adapter-numbers",
        claim="Every adapter's logits and effect are the reference's: odd ranks, patterns, strength, composite.",
        run=adapters_compute,
        applies=runs,
    )
    yield Check(
        id="pieces-numbers",
        claim="A text fed at once, in pieces or token by token gives the same logits.",
        run=pieces_compute,
        applies=runs,
    )
    yield Check(
        id="context-length",
        claim="The context length that was asked for is there, said, and not exceeded.",
        run=context_is_what_was_asked,
        applies=runs,
    )
    yield Check(
        id="quantized-numbers",
        claim="A quantized policy computes with quantized weights.",
        run=quantization_is_real,
        applies=runs,
    )


CHECKS = tuple(_checks())
