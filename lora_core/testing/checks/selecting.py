"""Checks of what sessions take beside the names of adapters: strengths, and several at once."""

from __future__ import annotations

import numpy as np

from lora_core.capability import Capability
from lora_core.errors import LoraCoreError, PluginError
from lora_core.testing.check import Check, selects
from lora_core.testing.checks.computing import judge_logits, reference_traces
from lora_core.testing.materials import BLENDED, WEAKER
from lora_core.testing.verdict import Broken
from lora_core.testing.workshop import Workshop


def strengths_compute(workshop: Workshop) -> None:
    """Ask an adapter at half its strength, then at none, and compare with the reference."""
    _compute(workshop, WEAKER)
    text = workshop.materials.texts[1]
    with workshop.opened(workshop.selecting()) as session:
        without, base = (np.array(session.step(name, text, 0), copy=True) for name in ("carol@0", None))
    if np.abs(without - base).max() > 0.01 * float(base.std()):
        raise Broken("At strength 0, an adapter changes the base")


def strengths_are_kept(workshop: Workshop) -> None:
    """Tell a session an adapter's strength, and compare with the adapter asked at it; then tell it 1 again."""
    text = workshop.materials.texts[1]
    with workshop.opened(workshop.selecting()) as session:

        def step(name: str) -> np.ndarray:
            session.reset()
            return np.array(session.step(name, text, 0), copy=True)

        whole, weaker = step("carol"), step(WEAKER)
        session.strength("carol", 0.5)
        told = step("carol")
        session.strength("carol", 1.0)
        again = step("carol")
    near = 0.01 * float(whole.std())
    if np.abs(told - weaker).max() > near:
        raise Broken(f"After strength('carol', 0.5), 'carol' does not compute what {WEAKER!r} does")
    if np.abs(again - whole).max() > near:
        raise Broken("After strength('carol', 1.0), 'carol' does not compute what it did before")


def blends_compute(workshop: Workshop) -> None:
    """Ask two adapters at once, one of them taken away, and compare with their composite."""
    _compute(workshop, BLENDED)


def undeclared_selections_are_refused(workshop: Workshop) -> None:
    """Ask for a strength and for a blend although neither is declared, or not of such bundles."""
    with workshop.opened(workshop.full()) as session:
        for selection in (WEAKER, BLENDED):
            try:
                session.step(selection, workshop.materials.texts[1], 0)
            except PluginError as error:
                raise Broken(f"{selection!r} fails by itself, it should be refused: {error}") from error
            except LoraCoreError:
                continue
            raise Broken(f"{selection!r} is accepted, and the descriptor declares nothing of it")


def _compute(workshop: Workshop, selection: str) -> None:
    for policy in workshop.policies:
        bundle = workshop.selecting(policy)
        with workshop.opened(bundle) as session:
            judge_logits(workshop, bundle, session, selection, reference_traces(workshop, session, selection))


def _some_refuse(workshop: Workshop) -> bool:
    """Say whether bundles as the kit exports them take no selections."""
    chosen = workshop.spec.selection_options
    declared = {Capability.STRENGTH, Capability.BLEND} & workshop.spec.capabilities
    return workshop.runs and (not declared or bool(chosen and not chosen.items() <= workshop.options.items()))


CHECKS = (
    Check(
        id="strength-numbers",
        claim="An adapter at another strength computes as if it had been linked at it, and at 0 it is the base.",
        run=strengths_compute,
        applies=selects(Capability.STRENGTH),
    ),
    Check(
        id="strength-kept",
        claim="`Session.strength` has an adapter's name stand for a strength from then on, and 1 is as it was linked.",
        run=strengths_are_kept,
        applies=selects(Capability.STRENGTH),
    ),
    Check(
        id="blend-numbers",
        claim="Several adapters at once compute what their composite computes.",
        run=blends_compute,
        applies=selects(Capability.BLEND),
    ),
    Check(
        id="selection-undeclared",
        claim="Strengths and blends are refused where they are not declared.",
        run=undeclared_selections_are_refused,
        applies=_some_refuse,
    ),
)
