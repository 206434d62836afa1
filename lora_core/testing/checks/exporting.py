"""Checks of an export: one foundation, the same bytes every time, nothing promised that is not done."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.slots.choice import place_alone
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.paths import MANIFEST
from lora_core.errors import PolicyError, UnsupportedError
from lora_core.events import Event, StageFinished
from lora_core.pipeline.export import CHECK_STAGE
from lora_core.quant.policy import QuantPolicy, Scheme
from lora_core.testing.check import Check
from lora_core.testing.comparison import differences, hash_differences
from lora_core.testing.verdict import Broken
from lora_core.testing.workshop import Workshop
from lora_core.verification.stored import digest


def works_here(workshop: Workshop) -> None:
    """Ask for the diagnosis."""
    diagnosis = workshop.backend.diagnose()
    if not diagnosis.works:
        raise Broken("; ".join(map(str, diagnosis.problems)))


def foundation_is_constant(workshop: Workshop) -> None:
    """Compare the foundations of exports with no adapter and with all."""
    for policy in workshop.policies:
        if _foundation(workshop.bare(policy)) != _foundation(workshop.full(policy)):
            raise Broken(f"With policy {policy}, the foundation with adapters is another than without")


def export_is_reproducible(workshop: Workshop) -> None:
    """Export the same again from another place, the adapters in another order."""
    for policy in workshop.policies:
        found = differences(workshop.full(policy).path, workshop.full_again(policy).path)
        if found:
            raise Broken(f"Exported again with policy {policy}: {', '.join(found)}")


def nothing_tells_of_the_machine(workshop: Workshop) -> None:
    """Look for paths, and for this machine's name, in every file of a bundle."""
    bundle = workshop.full()
    absolute = re.compile(rb'"(?:/|[A-Za-z]:\\\\)[^"]+"').findall((bundle.path / MANIFEST).read_bytes())
    if absolute:
        raise Broken(f"The manifest holds an absolute path: {absolute[0].decode()}")
    for path in (bundle.path / MANIFEST, *map(bundle.file, bundle.manifest.artifacts)):
        data = path.read_bytes()
        for word, what in _own_words(workshop):
            if word.encode() in data:
                raise Broken(f"{path.name} holds {word!r}, {what}")


def inputs_stay_as_they_are(workshop: Workshop) -> None:
    """Compare the model's and the adapters' files with what they were before any export."""
    workshop.full()
    before = workshop.materials.hashes
    if workshop.links:
        workshop.once("added", workshop.policies[0], make=lambda: workshop.add(workshop.copy(workshop.bare()), ["bob"]))
    found = hash_differences(before, workshop.materials.current_hashes())
    if found:
        raise Broken(f"Beside the bundle, the files of model and adapters changed: {', '.join(found)}")


def check_finds_what_export_refuses(workshop: Workshop) -> None:
    """Ask for what few backends can do: what `check` has nothing against must be exported, and be what was asked."""
    for what, asked, holds in _unusual(workshop):
        accepted: list[bool] = []

        def hear(event: Event, accepted: list[bool] = accepted) -> None:
            accepted += [True] * (isinstance(event, StageFinished) and event.stage == CHECK_STAGE)

        try:
            bundle = workshop.export(("alice", "bob"), emit=hear, **asked)
        except Exception as error:
            if accepted or not isinstance(error, UnsupportedError):
                raise Broken(f"{what}: `check` finds nothing, and `export` raises: {error}") from error
        else:
            if not holds(workshop, bundle):
                raise Broken(f"{what}: `check` finds nothing, and `export` does something else")


def _unusual(workshop: Workshop) -> Iterator[tuple[str, dict[str, Any], Any]]:
    policy = workshop.hub.policies[workshop.policies[0]]
    lora = attrs.evolve(policy, name="lora8", lora=Scheme(bits=8))
    yield "A policy that quantizes LoRA", {"policy": lora}, _adapters_are_not_plain
    odd = QuantPolicy(name="odd", summary="", linear=Scheme(bits=3, granularity="tensor"))
    yield "A policy of 3 bits per tensor", {"policy": odd}, _base_is_not_plain
    if workshop.spec.slot_plans:
        per_shape: dict[str, Any] = {"plan": "per-shape", "max_rank": None, "targets": None}
        yield "A plan for each shape", per_shape, lambda _, bundle: len(bundle.manifest.plans) == 2


def _adapters_are_not_plain(workshop: Workshop, bundle: Bundle) -> bool:
    """Say whether no part of an adapter is stored in float32 as it is."""
    from lora_core.adapters.peft.format import PeftFormat
    from lora_core.adapters.reading import read_adapters

    summary = workshop.materials.handle.summary
    (alice,) = read_adapters([workshop.materials.adapter("alice")], summary, [PeftFormat()])
    (placed,) = place_alone([alice], summary.layers)
    parts = {digest(value) for _, values in placed.values() for value in values.values()}
    return not parts & {blob.sha256 for blob in workshop.backend.sharing.blobs(bundle)}


def _base_is_not_plain(workshop: Workshop, bundle: Bundle) -> bool:
    """Say whether no linear layer of the base is stored in float32 as it is."""
    base = workshop.materials.base
    linear = {digest(array) for name, array in base.items() if "_proj" in name}
    return not linear & {blob.sha256 for blob in workshop.backend.sharing.blobs(bundle)}


def undeclared_embeddings_are_refused(workshop: Workshop) -> None:
    """Ask for a quantized embedding although the descriptor does not offer any."""
    try:
        workshop.export((), embedding="8,0")
    except PolicyError:
        return
    raise Broken("A quantized embedding is accepted, and the descriptor does not offer any")


def _foundation(bundle: Bundle) -> tuple[str, tuple[tuple[str, str], ...]]:
    files = [(each.path, each.sha256) for each in bundle.manifest.artifacts if each.role == "foundation"]
    return bundle.manifest.foundation, tuple(sorted(files))


def _own_words(workshop: Workshop) -> Iterator[tuple[str, str]]:
    words = {
        str(workshop.materials.root): "where the model lay",
        str(workshop.root): "where the bundle was made",
        str(Path.cwd()): "the working directory",
        str(Path.home()): "the user's directory",
        tempfile.gettempdir() + os.sep: "the directory of temporary files",
        platform.node(): "this machine's name",
    }
    # Shorter ones stand in any file by chance.
    return ((word, what) for word, what in words.items() if len(word) > 4)


CHECKS = (
    Check(id="works-here", claim="The backend works on this machine.", run=works_here),
    Check(id="foundation-constant", claim="Adapters never change the foundation.", run=foundation_is_constant),
    Check(
        id="reproducible",
        claim="The same inputs give the same bytes, wherever the model lies and whatever the order of adapters.",
        run=export_is_reproducible,
    ),
    Check(
        id="no-machine-facts",
        claim="Nothing in a bundle tells of the machine that made it.",
        run=nothing_tells_of_the_machine,
    ),
    Check(id="inputs-untouched", claim="Model and adapters are read and never written.", run=inputs_stay_as_they_are),
    Check(
        id="check-complete",
        claim="What `check` has nothing against is exported, and is what was asked.",
        run=check_finds_what_export_refuses,
    ),
    Check(
        id="embedding-undeclared",
        claim="Quantized embeddings are not declared, and refused.",
        run=undeclared_embeddings_are_refused,
        applies=lambda workshop: not workshop.spec.embeddings,
    ),
)
