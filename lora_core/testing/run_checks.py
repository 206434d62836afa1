"""Checks of a bundle that runs: adapters take effect, leave nothing behind, and unknown ones are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.errors import UnsupportedError, UsageError
from lora_core.testing.check import Broken, Check, Unavailable, expect_refusal
from lora_core.testing.workshop import Workshop

PROMPT = (3, 17, 5, 9)
Ask = Callable[[str | None], npt.NDArray[np.float32]]


def adapters_take_effect(workshop: Workshop) -> None:
    """Ask the base, each adapter, and the base again."""
    with _asking(workshop, workshop.export(("alice", "bob"))) as ask:
        answers = {name or "base": ask(name) for name in (None, "alice", "bob")}
        for name, logits in answers.items():
            if logits.shape != (workshop.vocabulary,) or not np.isfinite(logits).all():
                raise Broken(f"The logits of {name} have shape {logits.shape}, or are not all finite")
        for one, other in (("base", "alice"), ("base", "bob"), ("alice", "bob")):
            if np.array_equal(answers[one], answers[other]):
                raise Broken(f"{one} and {other} answer alike: an adapter has no effect")
        if _differs(ask(None), answers["base"], of=answers["alice"]):
            raise Broken("The base answers differently after an adapter: the KV cache survived the change")


def added_adapters_answer_alike(workshop: Workshop) -> None:
    """Ask an adapter that was added, and the same one exported."""
    added = workshop.add(workshop.copy(workshop.export(("alice",)), "answers"), [workshop.adapter("bob")])
    with _asking(workshop, added) as ask:
        base, answer = ask(None), ask("bob")
    with _asking(workshop, workshop.export(("alice", "bob"))) as ask:
        if _differs(ask("bob"), answer, of=base):
            raise Broken("An added adapter answers otherwise than an exported one")


def unknown_adapters_are_refused(workshop: Workshop) -> None:
    """Ask an adapter that the bundle does not have."""
    with _asking(workshop, workshop.export(("alice",))) as ask:
        expect_refusal(UsageError, lambda: ask("nobody"), "An unknown adapter's name does not raise UsageError")


def undeclared_running_is_refused(workshop: Workshop) -> None:
    """Open a bundle although neither running nor evaluating is declared."""
    bundle = workshop.export(())
    expect_refusal(
        UnsupportedError,
        lambda: workshop.backend.open(bundle, {}),
        "Neither running nor evaluating is declared, and `open` does not raise UnsupportedError",
    )


@contextmanager
def _asking(workshop: Workshop, bundle: Bundle) -> Iterator[Ask]:
    """Open `bundle` and yield a function from an adapter's name (None: the base) to the logits after the prompt."""
    try:
        session = lora_core.open(bundle, hub=workshop.hub)
    except UnsupportedError as error:
        raise Unavailable(str(error)) from error

    def ask(adapter: str | None) -> npt.NDArray[np.float32]:
        session.load(adapter)
        # A copy: a runtime may hand out its own buffer.
        return np.array(session.step(adapter, PROMPT, 0), copy=True)

    with session:
        yield ask


def _differs(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32], *, of: npt.NDArray[np.float32]) -> bool:
    """Say whether two answers differ by more than a hundredth of the adapter's effect, `other` against `of`.

    A runtime may add in another order for weights at another address, or for other threads, and quantized activations
    then round otherwise here and there. A wrong matrix, or a cache of another text, is of the size of the effect.
    """
    return not bool(np.abs(one - other).max() <= 0.01 * np.abs(of - other).max())


CHECKS = (
    Check(
        name="answers",
        claim="Adapters take effect and leave nothing behind.",
        run=adapters_take_effect,
        applies=lambda workshop: workshop.runs,
    ),
    Check(
        name="added answers",
        claim="An added adapter answers as an exported one.",
        run=added_adapters_answer_alike,
        applies=lambda workshop: workshop.runs and workshop.links,
    ),
    Check(
        name="unknown",
        claim="Unknown adapters are refused.",
        run=unknown_adapters_are_refused,
        applies=lambda workshop: workshop.runs,
    ),
    Check(
        name="no run",
        claim="Running is not declared, and refused.",
        run=undeclared_running_is_refused,
        applies=lambda workshop: not workshop.runs,
    ),
)
