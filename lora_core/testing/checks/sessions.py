"""Checks of a session's state and manners."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.bundle.paths import MANIFEST
from lora_core.errors import LoraCoreError, PluginError, UnsupportedError, UsageError
from lora_core.models.reference_model import Trace
from lora_core.runtime.session import Loaded
from lora_core.testing.check import Check, expect_refusal, runs
from lora_core.testing.comparison import file_hashes, hash_differences
from lora_core.testing.verdict import Broken
from lora_core.testing.workshop import Workshop
from lora_core.verification.kv_cache import follow, kv_cache


def adapters_leave_nothing_behind(workshop: Workshop) -> None:
    """Go on in the middle of a text after a reset and after a change of adapter; ask all again at the end."""
    names = (None, "alice", "bob")
    text = workshop.materials.texts[0]
    no_logits = np.zeros((0, 0), np.float32)
    traces = {name: Trace(prompt=text[:6], tokens=text[6:9], logits=no_logits) for name in names}
    with workshop.opened(workshop.full()) as session:
        first = {name: follow(session, name, traces[name], 3) for name in names}
        finding = kv_cache(session, names, first, traces)
    if finding.failed:
        raise Broken(finding.detail)


def sessions_are_apart(workshop: Workshop) -> None:
    """Use two sessions in turn."""
    text = workshop.materials.texts[0]
    bundle = workshop.full()
    with workshop.opened(bundle) as alone:
        alone.step("alice", text[:6], 0)
        expected = np.array(alone.step("alice", text[6:7], 6), copy=True)
    with workshop.opened(bundle) as one, workshop.opened(bundle) as other:
        one.step("alice", text[:6], 0)
        other.step("bob", text[6:15], 0)
        found = np.array(one.step("alice", text[6:7], 6), copy=True)
    if not _alike(found, expected):
        raise Broken("A session answers otherwise while another one is in use")


def unknown_adapters_are_refused(workshop: Workshop) -> None:
    """Load and ask an adapter that the bundle does not have."""
    with workshop.opened(workshop.full()) as session:
        expect_refusal(UsageError, lambda: session.load("nobody"), "Loading an unknown adapter")
        expect_refusal(UsageError, lambda: session.step("nobody", (1, 2), 0), "Asking an unknown adapter")


def impossible_steps_are_refused(workshop: Workshop) -> None:
    """Feed nothing, and feed at a negative position."""
    with workshop.opened(workshop.full()) as session:
        expect_refusal(UsageError, lambda: session.step(None, (), 0), "A step without tokens")
        expect_refusal(UsageError, lambda: session.step(None, (1, 2), -1), "A step at position -1")


def closed_sessions_refuse(workshop: Workshop) -> None:
    """Use a session after it was closed, and close it once more."""
    with workshop.opened(workshop.full()) as session:
        session.step("alice", (1, 2), 0)
        session.close()
        for what, attempt in (
            ("`step`", lambda: session.step("alice", (1, 2), 0)),
            ("`load`", lambda: session.load(None)),
        ):
            try:
                attempt()
            except PluginError as error:
                raise Broken(f"{what} after `close` fails by itself, it should refuse: {error}") from error
            except LoraCoreError:
                continue
            raise Broken(f"{what} after `close` is accepted: nothing was released")


def facts_are_told(workshop: Workshop) -> None:
    """Read what a session says of itself."""
    bundle = workshop.full()
    with workshop.opened(bundle) as session:
        loads = [session.load(name) for name in (None, "alice", "alice")]
        facts = dict(session.facts)
        if session.bundle.path != bundle.path:
            raise Broken(f"`bundle` says {session.bundle.path}, and it was opened at {bundle.path}")
    for name, loaded in zip((None, "alice", "alice"), loads, strict=True):
        if not isinstance(loaded, Loaded) or loaded.adapter != name or loaded.seconds < 0:
            raise Broken(f"`load` of {name!r} returns {loaded!r}")
    if not isinstance(facts.get("context_len"), int):
        raise Broken("`facts` lacks an integer `context_len`, without which nothing can be generated or verified")
    try:
        json.dumps(facts)
    except (TypeError, ValueError) as error:
        raise Broken(f"`facts` is no plain data: {error}") from error


def bundles_are_whole(workshop: Workshop) -> None:
    """Move a bundle, take model and adapters away, and open it; it must answer as before, and stay as it is."""
    bundle = workshop.full()
    text = workshop.materials.texts[0]
    names = (None, "alice", "mix")
    with workshop.opened(bundle) as session:
        expected = {name: np.array(session.step(name, text[:6], 0), copy=True) for name in names}
    moved = attrs.evolve(bundle, path=workshop.copy(bundle))
    away = bundle.path.with_name("away")
    bundle.path.rename(away)
    try:
        with workshop.materials.taken_away(), workshop.opened(moved) as session:
            for name in names:
                found = np.array(session.step(name, text[:6], 0), copy=True)
                if not _alike(found, expected[name]):
                    raise Broken(f"Elsewhere, {name or 'the base'} answers otherwise")
    except LoraCoreError as error:
        raise Broken(f"Elsewhere, and without the model, the bundle does not run: {error}") from error
    finally:
        _put_back(away, bundle.path)
    listed = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    changed = hash_differences(
        listed, {name: each for name, each in file_hashes(moved.path).items() if name != MANIFEST}
    )
    if changed:
        raise Broken(f"Running changes the bundle: {', '.join(changed)}")


def nothing_is_printed_to_stdout(workshop: Workshop) -> None:
    """Listen while exporting, adding, opening and running."""
    workshop.once("acted", make=lambda: _act(workshop))
    for activity, times in workshop.noise.items():
        _expect_silence(activity, "stdout", [printed.stdout for printed in times])


def nothing_is_printed_to_stderr(workshop: Workshop) -> None:
    """Listen while exporting, adding, opening and running, but not the first time: libraries complain when they are
    imported, and only once in a process.
    """
    workshop.once("acted", make=lambda: _act(workshop))
    for activity, times in workshop.noise.items():
        _expect_silence(activity, "stderr", [printed.stderr for printed in times[1:]])


def undeclared_running_is_refused(workshop: Workshop) -> None:
    """Open a bundle although neither running nor evaluating is declared."""
    bundle = workshop.bare()
    expect_refusal(UnsupportedError, lambda: workshop.backend.open(bundle, None), "`open`, which is not declared,")


def _alike(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    """Say whether two answers differ by less than a hundredth of their spread.

    A runtime may add in another order for weights at another address, and quantized activations then round otherwise
    here and there. Other weights, or a cache of another text, differ by the size of the spread.
    """
    return bool(np.abs(one - other).max() <= 0.01 * float(other.std()))


def _expect_silence(activity: str, stream: str, texts: list[str]) -> None:
    written = "".join(texts).strip()
    if written:
        raise Broken(f"During {activity}, this is written to {stream}: {written.splitlines()[0]}")


def _act(workshop: Workshop) -> None:
    """Export, add, open and run, twice each, with ears open."""
    workshop.bare()
    bundle = workshop.full()
    for _ in range(2):
        if workshop.links:
            workshop.add(workshop.copy(workshop.bare()), ["alice"])
        if workshop.runs:
            with workshop.opened(bundle) as session, workshop.heard("running"):
                session.load("alice")
                session.step("alice", (1, 2, 3), 0)
                session.step("alice", (4,), 3)
                session.reset()


def _put_back(away: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    away.rename(place)


CHECKS = (
    Check(
        id="kv-cache",
        claim="Nothing of a text survives a reset or a change of adapter.",
        run=adapters_leave_nothing_behind,
        applies=runs,
    ),
    Check(id="sessions-apart", claim="Two sessions do not disturb each other.", run=sessions_are_apart, applies=runs),
    Check(id="adapter-unknown", claim="Unknown adapters are refused.", run=unknown_adapters_are_refused, applies=runs),
    Check(id="step-impossible", claim="Impossible steps are refused.", run=impossible_steps_are_refused, applies=runs),
    Check(id="closed", claim="A closed session has released what it held.", run=closed_sessions_refuse, applies=runs),
    Check(id="facts", claim="A session says what others need to know.", run=facts_are_told, applies=runs),
    Check(
        id="bundle-whole",
        claim="A bundle runs anywhere, without the model, and stays as it is.",
        run=bundles_are_whole,
        applies=runs,
    ),
    Check(id="stdout-silent", claim="Nothing is printed.", run=nothing_is_printed_to_stdout),
    Check(id="stderr-silent", claim="Nothing is written to standard error.", run=nothing_is_printed_to_stderr),
    Check(
        id="run-undeclared",
        claim="Running is not declared, and refused.",
        run=undeclared_running_is_refused,
        applies=lambda workshop: not workshop.runs,
    ),
)
