"""Checks of what is stored: every byte told, the base once, and a fingerprint of all of it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator

import attrs

import lora_core
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference
from lora_core.adapters.slots.choice import place, place_alone
from lora_core.bundle.bundle import Artifact, Bundle
from lora_core.errors import BundleError, UnsupportedError
from lora_core.pipeline.given import adapter_formats
from lora_core.quant.policy import Scheme
from lora_core.sharing.accounting import unaccounted_problems
from lora_core.sharing.blobs import Blob
from lora_core.sharing.report import SharingReport, owners_of
from lora_core.testing.check import Check
from lora_core.testing.materials import ADAPTERS
from lora_core.testing.verdict import Broken
from lora_core.testing.workshop import Workshop
from lora_core.verification.finding import Finding
from lora_core.verification.stored import adapter_precision, base_precision, recorded_policy

OVERHEAD = 16 * 1024
"""Bytes, compressed, that a file may hold beside its blobs: headers, a graph. The tiny base in 4 bits has twice that,
and weights do not compress.
"""
OVERHEAD_OF_A_BLOB = 128
"""As many more for each blob of the file: its name and place."""
NEEDLE = 64


def blobs_are_true(workshop: Workshop) -> None:
    """Hash the bytes of every blob again."""
    bundle = workshop.full()
    methods = {method.name for method in bundle.manifest.methods}
    for blob in workshop.blobs(bundle):
        data = bundle.file(blob.file).read_bytes()[blob.offset : blob.offset + blob.size]
        if len(data) != blob.size or hashlib.sha256(data).hexdigest() != blob.sha256:
            raise Broken(f"The bytes of blob {blob.key!r} in {blob.file} do not have the hash that it states")
        if not blob.methods <= methods:
            strangers = ", ".join(sorted(blob.methods - methods))
            raise Broken(f"Blob {blob.key!r} names methods that the manifest does not have: {strangers}")


def base_is_stored_once(workshop: Workshop) -> None:
    """Look for bytes of the base that are stored twice: among the blobs, and in everything else."""
    bundle = workshop.full()
    methods = sorted(method.name for method in bundle.manifest.methods)
    blobs = [blob for blob in workshop.blobs(bundle) if blob.methods <= set(methods)]
    if not any(blob.methods == set(methods) for blob in blobs):
        raise Broken("No blob is shared by all methods: the base is not stored once")
    base = next((method.name for method in bundle.manifest.methods if method.adapter is None), "")
    for duplicate in SharingReport.from_blobs(blobs, owners_of(bundle.manifest.methods)).duplicates_of(base):
        places = " and ".join(f"{key!r} in {file}" for file, _, key in duplicate.places)
        raise Broken(f"{duplicate.size} bytes of the base are stored more than once: {places}")
    contents = {each.path: bundle.file(each).read_bytes() for each in bundle.manifest.artifacts}
    for name, array in workshop.materials.base.items():
        needle = array.tobytes()[:NEEDLE]
        found = [path for path, data in contents.items() for _ in range(data.count(needle))]
        if len(found) > 1:
            raise Broken(f"The values of {name} are stored {len(found)} times: in {', '.join(found)}")


def base_is_reported(workshop: Workshop) -> None:
    """Compare the bytes of the blobs that the base reads with those that its weights need."""
    for policy in workshop.policies:
        bundle = workshop.full(policy)
        methods = {method.name for method in bundle.manifest.methods if method.adapter is None}
        places = {(each.file, each.offset): each.size for each in workshop.blobs(bundle) if each.methods & methods}
        # A backend that states limits of its own may keep what has no scheme in float16.
        half = policy in workshop.spec.limits
        needed, found = _needed(bundle, unquantized=2 if half else 4), sum(places.values())
        if found < needed:
            what = f"the blobs that the base reads have {found} bytes, and its weights need {needed} at least"
            raise Broken(f"With policy {policy}, {what}: some are not reported")


def bytes_are_accounted_for(workshop: Workshop) -> None:
    """Take the reported blobs out of every file: what is left must be small, or say nothing."""
    for policy in workshop.policies:
        bundle = workshop.full(policy)
        blobs = workshop.blobs(bundle)
        for problem in unaccounted_problems(bundle, blobs, workshop.backend.sharing.parts(bundle)):
            raise Broken(f"With policy {policy}, {problem.what}")
        for artifact in bundle.manifest.artifacts:
            if artifact.role == "tokenizer":
                continue
            mine = [blob for blob in blobs if blob.file == artifact.path]
            rest = _rest(bundle.file(artifact).read_bytes(), mine)
            allowed = OVERHEAD + OVERHEAD_OF_A_BLOB * len(mine)
            weight = len(zlib.compress(rest))
            if weight > allowed:
                what = f"{artifact.path} holds {len(rest)} bytes ({weight} compressed) that no blob reports"
                raise Broken(f"With policy {policy}, {what}: more than headers and a graph need")


def policy_is_what_is_stored(workshop: Workshop) -> None:
    """Compare the stored bytes of the base with those that the schemes of each policy need."""
    for policy in workshop.policies:
        bundle = workshop.full(policy)
        needed = _needed(bundle, unquantized=4)
        plain = sum(array.nbytes for array in workshop.materials.base.values())
        if all(bundle.manifest.policy.get(part) is None for part in ("linear", "output", "embedding")):
            continue
        methods = {method.name for method in bundle.manifest.methods if method.adapter is None}
        places = {(each.file, each.offset): each.size for each in workshop.blobs(bundle) if each.methods & methods}
        found = sum(places.values())
        if found > (needed + plain) / 2:
            raise Broken(f"With policy {policy}, the base has {found} bytes; quantized it needs about {needed}")


def embedding_is_quantized(workshop: Workshop) -> None:
    """Export with an embedding of 8 bits: something else is stored, and float32 only for a head that is tied to it."""
    bundle = workshop.export((), embedding="8,0", max_rank=None, targets=None)
    before = recorded_policy(workshop.bare().manifest.policy).embedding
    known = {blob.sha256 for blob in workshop.blobs(workshop.bare())}
    if (before is None or before.bits != 8) and {blob.sha256 for blob in workshop.blobs(bundle)} <= known:
        raise Broken("An embedding of 8 bits was asked for, and what is stored is the same as without")
    schemes = recorded_policy(bundle.manifest.policy).assign(bundle.manifest.base.layers).schemes
    for layer in bundle.manifest.base.layers:
        tied = [each.name for each in bundle.manifest.base.layers if each.tied_to == layer.name]
        if layer.kind != "embedding" or any(schemes[name] is None for name in tied):
            continue
        needle = workshop.materials.base[f"{layer.name}.weight"].tobytes()[:NEEDLE]
        for artifact in bundle.manifest.artifacts:
            if needle in bundle.file(artifact).read_bytes():
                raise Broken(f"An embedding of 8 bits was asked for, and {artifact.path} holds it in float32")


def weights_are_plain(workshop: Workshop) -> None:
    """Look for every weight and every part in float32, byte for byte, where the policy leaves it alone."""
    model = workshop.materials.handle
    references = [workshop.materials.adapter(name) for name in ADAPTERS]
    adapters = read_adapters(references, model.summary, adapter_formats(workshop.hub))
    for policy in workshop.policies:
        bundle = workshop.full(policy)
        blobs = workshop.blobs(bundle)
        findings: list[Finding] = [base_precision(bundle, blobs, model)]
        if recorded_policy(bundle.manifest.policy).lora is None:
            findings += [adapter_precision(bundle, blobs, adapter) for adapter in adapters]
        for finding in findings:
            if finding.failed:
                raise Broken(f"With policy {policy}, {finding.subject}: {finding.detail}")


def fingerprint_is_of_the_bytes(workshop: Workshop) -> None:
    """Compare the fingerprint of the stored foundation with the manifest's, and with that of another model."""
    bundle = workshop.full()
    stored = workshop.backend.sharing.fingerprint(bundle)
    if stored != bundle.manifest.foundation:
        raise Broken("The stored foundation does not have the fingerprint that the manifest states")
    if stored == workshop.backend.sharing.fingerprint(workshop.stranger()):
        raise Broken("Two models with different weights have the same fingerprint")


def fingerprint_covers_everything(workshop: Workshop) -> None:
    """Change a byte here and there in the foundation: every time the fingerprint must be another."""
    bundle = attrs.evolve(workshop.full(), path=workshop.copy(workshop.full()))
    for path, offset in _spots(bundle, workshop.blobs(workshop.full())):
        file = bundle.file(path)
        data = bytearray(file.read_bytes())
        file.write_bytes(data[:offset] + bytes([data[offset] ^ 0xFF]) + data[offset + 1 :])
        try:
            found = workshop.backend.sharing.fingerprint(bundle)
        except BundleError:
            found = ""  # a file that cannot be read any more has none
        file.write_bytes(data)
        if found == bundle.manifest.foundation:
            raise Broken(f"Byte {offset} of {path} ({len(data)} bytes) is changed, and the fingerprint is the same")


def foreign_foundation_is_not_linked(workshop: Workshop) -> None:
    """Put the files of another model's base in place of a bundle's own, and link."""
    foreign = _foreign(workshop)
    _expect_bundle_error("`add`", lambda: workshop.add(foreign.path, ["bob"]))
    out = workshop.place()
    out.mkdir()
    stranger = AdapterReference(name="another", directory=workshop.materials.adapter("bob").directory)
    adapters = read_adapters([stranger], foreign.manifest.base, adapter_formats(workshop.hub))
    plans = foreign.manifest.plans
    placed = place(adapters, plans) if workshop.spec.slot_plans else place_alone(adapters, foreign.manifest.base.layers)
    # The core looks before `add`; who calls `link` relies on the backend.
    _expect_bundle_error("`link`", lambda: workshop.backend.link(foreign, placed, out, workshop.tell))


def foreign_foundation_is_not_opened(workshop: Workshop) -> None:
    """Put the files of another model's base in place of a bundle's own, and load it."""
    foreign = _foreign(workshop)

    def load_all() -> None:
        with lora_core.open(foreign, hub=workshop.hub) as session:
            session.load(None)
            session.load("alice")

    _expect_bundle_error("`open`", load_all)


def _expect_bundle_error(what: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except (BundleError, UnsupportedError):
        return
    raise Broken(f"{what} accepts a bundle whose base is that of another model")


def _foreign(workshop: Workshop) -> Bundle:
    mine, other = workshop.full(), workshop.stranger()
    path = workshop.copy(mine)
    for artifact in _of_the_base(mine):
        (path / artifact.path).write_bytes(other.file(artifact).read_bytes())
    return attrs.evolve(mine, path=path)


def _of_the_base(bundle: Bundle) -> Iterator[Artifact]:
    return (each for each in bundle.manifest.artifacts if each.adapter is None and each.role != "tokenizer")


def _needed(bundle: Bundle, *, unquantized: int) -> int:
    """Return how many bytes the base's weights need at the bits of the policy, `unquantized` those without a scheme."""
    policy = recorded_policy(bundle.manifest.policy)
    schemes = policy.assign(bundle.manifest.base.layers).schemes
    bits = 0
    for layer in bundle.manifest.base.layers:
        scheme: Scheme | None = schemes[layer.name]
        tied = layer.tied_to is not None and scheme == schemes[layer.tied_to]
        if not tied:
            bits += layer.in_features * layer.out_features * (scheme.bits if scheme is not None else 8 * unquantized)
    return bits // 8


def _rest(data: bytes, blobs: list[Blob]) -> bytes:
    """Return the bytes of `data` that are in none of `blobs`."""
    rest, end = bytearray(), 0
    for blob in sorted(blobs, key=lambda each: each.offset):
        rest += data[end : max(end, blob.offset)]
        end = max(end, blob.offset + blob.size)
    return bytes(rest + data[end:])


def _spots(bundle: Bundle, blobs: list[Blob]) -> Iterator[tuple[str, int]]:
    """Yield places in the foundation: in its files, and in blobs of the base wherever they lie."""
    files = [each for each in bundle.manifest.artifacts if each.role == "foundation"]
    for file in files:
        yield from ((file.path, offset) for offset in (0, file.size // 3, file.size // 2, file.size - 1))
    methods = {method.name for method in bundle.manifest.methods}
    base = sorted((each for each in blobs if each.methods == methods), key=lambda each: (each.file, each.offset))
    for blob in (base[0], base[len(base) // 2], base[-1]) if base else ():
        yield from ((blob.file, offset) for offset in (blob.offset, blob.offset + blob.size - 1))


CHECKS = (
    Check(id="blobs-true", claim="Blobs are what their hashes say.", run=blobs_are_true),
    Check(id="base-once", claim="The base is stored once, and all methods share it.", run=base_is_stored_once),
    Check(id="base-reported", claim="Every weight of the base is among the blobs.", run=base_is_reported),
    Check(
        id="bytes-accounted",
        claim="Every byte of every file belongs to a blob, or to a small header or graph.",
        run=bytes_are_accounted_for,
    ),
    Check(id="quantized", claim="What a policy quantizes is stored so.", run=policy_is_what_is_stored),
    Check(
        id="embedding-quantized",
        claim="A quantized embedding is stored so.",
        run=embedding_is_quantized,
        applies=lambda workshop: workshop.spec.embeddings,
    ),
    Check(
        id="weights-plain",
        claim="What a policy leaves alone is stored in float32, byte for byte.",
        run=weights_are_plain,
        applies=lambda workshop: workshop.backend.sharing.plain_weights,
    ),
    Check(id="fingerprint-true", claim="The fingerprint is that of the stored bytes.", run=fingerprint_is_of_the_bytes),
    Check(
        id="fingerprint-covers",
        claim="Any changed byte of the foundation changes the fingerprint.",
        run=fingerprint_covers_everything,
    ),
    Check(
        id="foreign-not-linked",
        claim="Nothing is linked against a foreign foundation.",
        run=foreign_foundation_is_not_linked,
        applies=lambda workshop: workshop.links,
    ),
    Check(
        id="foreign-not-opened",
        claim="A foreign foundation is not opened.",
        run=foreign_foundation_is_not_opened,
        applies=lambda workshop: workshop.runs,
    ),
)
