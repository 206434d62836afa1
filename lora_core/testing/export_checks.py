"""Checks of what an export writes: one foundation, the same bytes every time, and an honest account of sharing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import attrs

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError, UnsupportedError
from lora_core.sharing.report import SharingReport
from lora_core.testing.check import Broken, Check, Unavailable
from lora_core.testing.comparison import expect_same_files
from lora_core.testing.workshop import Workshop


def works_here(workshop: Workshop) -> None:
    """Ask for the diagnosis."""
    diagnosis = workshop.backend.diagnose()
    if not diagnosis.works:
        raise Broken("; ".join(map(str, diagnosis.problems)))


def foundation_is_constant(workshop: Workshop) -> None:
    """Compare the foundations of exports with no, one and two adapters, in both orders, for every policy."""
    for policy in workshop.policies:
        expected = _foundation(workshop.export((), policy=policy))
        for names in (("alice",), ("alice", "bob"), ("bob", "alice")):
            if _foundation(workshop.export(names, policy=policy)) != expected:
                raise Broken(f"With policy {policy}, the foundation with {' and '.join(names)} is another than without")


def order_is_irrelevant(workshop: Workshop) -> None:
    """Compare bundles whose adapters were given in another order."""
    one, other = workshop.export(("alice", "bob")), workshop.export(("bob", "alice"))
    expect_same_files(one.path, other.path, "In another order")


def export_is_deterministic(workshop: Workshop) -> None:
    """Export the same twice, for every policy."""
    for policy in workshop.policies:
        first = workshop.export(("alice", "bob"), policy=policy)
        second = workshop.export(("alice", "bob"), policy=policy, again=True)
        expect_same_files(first.path, second.path, f"Exported again with policy {policy}")


def blobs_are_true(workshop: Workshop) -> None:
    """Hash the bytes of every blob again, and look for bytes of the base that are stored twice."""
    bundle = workshop.export(("alice", "bob"))
    methods = {method.name for method in bundle.manifest.methods}
    blobs = list(workshop.backend.sharing.blobs(bundle))
    for blob in blobs:
        data = bundle.file(blob.file).read_bytes()[blob.offset : blob.offset + blob.size]
        if hashlib.sha256(data).hexdigest() != blob.sha256:
            raise Broken(f"The bytes of blob {blob.key!r} in {blob.file} do not have the hash that it states")
        if not blob.methods <= methods:
            strangers = ", ".join(sorted(blob.methods - methods))
            raise Broken(f"Blob {blob.key!r} names methods that the manifest does not have: {strangers}")
    if not any(blob.methods == methods for blob in blobs):
        raise Broken("No blob is shared by all methods: the base is not stored once")
    base = [method.name for method in bundle.manifest.methods if method.adapter is None]
    for duplicate in SharingReport.from_blobs(blobs, sorted(methods)).duplicates_of(base):
        places = " and ".join(f"{key!r} in {file}" for file, _, key in duplicate.places)
        raise Broken(f"{duplicate.size} bytes of the base are stored more than once: {places}")


def fingerprint_is_of_the_bytes(workshop: Workshop) -> None:
    """Compare the fingerprint of the stored foundation with the manifest's, and with that of another model."""
    bundle, other = workshop.export(("alice",)), workshop.export(("alice",), seed=1)
    stored = workshop.backend.sharing.fingerprint(bundle)
    if stored != bundle.manifest.foundation:
        raise Broken("The stored foundation does not have the fingerprint that the manifest states")
    if stored == workshop.backend.sharing.fingerprint(other):
        raise Broken("Two models with different weights have the same fingerprint")
    strangers = [each.name for each in bundle.manifest.adapters if each.foundation != stored]
    if strangers:
        raise Broken(f"These adapters do not carry the fingerprint of their foundation: {', '.join(strangers)}")


def foreign_foundation_is_refused(workshop: Workshop) -> None:
    """Put the files of another model's base in place of a bundle's own, and load it."""
    mine, other = workshop.export(("alice",)), workshop.export(("alice",), seed=1)
    path = workshop.copy(mine, "foreign")
    for artifact in mine.manifest.artifacts:
        if artifact.adapter is None and artifact.role != "tokenizer":
            (path / artifact.path).write_bytes(other.file(artifact).read_bytes())
    attempts: dict[str, Callable[[], object]] = {"fingerprint": lambda: _expect_own(workshop, mine, path)}
    if workshop.links:
        attempts["add"] = lambda: workshop.add(path, [workshop.adapter("bob")])
    if workshop.runs:
        attempts["open"] = lambda: _load_all(workshop, path)
    for what, attempt in attempts.items():
        try:
            attempt()
        except BundleError:
            continue
        except UnsupportedError as error:
            raise Unavailable(str(error)) from error
        raise Broken(f"`{what}` accepts a bundle whose base is that of another model")


def _foundation(bundle: Bundle) -> tuple[str, tuple[tuple[str, str], ...]]:
    files = [(each.path, each.sha256) for each in bundle.manifest.artifacts if each.role == "foundation"]
    return bundle.manifest.foundation, tuple(sorted(files))


def _expect_own(workshop: Workshop, mine: Bundle, path: Path) -> None:
    if workshop.backend.sharing.fingerprint(attrs.evolve(mine, path=path)) != mine.manifest.foundation:
        raise BundleError("The foundation is another one")


def _load_all(workshop: Workshop, path: Path) -> None:
    with lora_core.open(path, hub=workshop.hub) as session:
        session.load(None)
        session.load("alice")


CHECKS = (
    Check(name="works", claim="The backend works on this machine.", run=works_here),
    Check(name="foundation", claim="Adapters never change the foundation.", run=foundation_is_constant),
    Check(name="order", claim="The order of adapters changes nothing.", run=order_is_irrelevant),
    Check(name="deterministic", claim="The same inputs give the same bytes.", run=export_is_deterministic),
    Check(name="sharing", claim="Blobs are what their hashes say, and the base is stored once.", run=blobs_are_true),
    Check(name="fingerprint", claim="The fingerprint is that of the stored bytes.", run=fingerprint_is_of_the_bytes),
    Check(name="foreign", claim="A foreign foundation is refused.", run=foreign_foundation_is_refused),
)
