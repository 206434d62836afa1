"""The sharing proof: every constant that the stored functions refer to, hashed from the program's bytes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lora_core.adapters.slots.input_names import input_method
from lora_core.bundle.bundle import Artifact, Bundle
from lora_core.errors import BundleError
from lora_core.intake.parsing import parsing
from lora_core.pte import aligned
from lora_core.sharing.blobs import Blob, FilePart, WeightSharing
from lora_core_coreml.program import naming
from lora_core_coreml.storage import blobfile, mil, package, pte
from lora_core_coreml.storage.adapter_file import AdapterData, read_adapter
from lora_core_coreml.storage.blobfile import BlobKey
from lora_core_coreml.storage.package import StoredPackage

LOOSE_PACKAGES = "mlpackage"
"""Role and directory of the packages that `--emit-mlpackage` writes beside the program."""
ROLE = "adapter-data"
"""Role of adapters' files, which are inputs of the program."""


class CoremlSharing(WeightSharing):
    """Each partition has one blob file; methods share a blob by referring to the same offset."""

    def blobs(self, bundle: Bundle) -> Iterable[Blob]:
        """Yield every blob of every package with the methods whose functions refer to it, and those of adapters' files.

        A stored blob that no function refers to is yielded too, with no methods: nothing stored stays unseen.
        """
        readers = _readers(bundle)
        for program in sorted({method.program for method in bundle.manifest.methods}):
            path = bundle.file(program)
            with parsing(path):
                for index, found in enumerate(package.stored_packages(pte.read(path))):
                    yield from _package_blobs(found, program, index, readers)
        for artifact, file in _adapter_files(bundle):
            record = bundle.manifest.record(str(artifact.adapter))
            methods = frozenset(method.name for method in record.methods) if record else frozenset()
            yield from _adapter_blobs(file, artifact.path, methods)

    def fingerprint(self, bundle: Bundle) -> str:
        """Hash the base's constants: those that the base's own functions refer to, in the order they are stored."""
        digests = []
        with parsing(bundle.path / "manifest.json"):
            (program,) = {method.program for method in bundle.manifest.methods}
        with parsing(bundle.file(program)):
            for found in package.stored_packages(pte.read(bundle.file(program))):
                digests.append(_foundation_digest(found))
        return fingerprint_of(digests)

    def parts(self, bundle: Bundle) -> Iterator[FilePart]:
        """Yield templates, each program's flatbuffer, its constants, and all of its packages but the weights.

        The packages of `--emit-mlpackage` are copies of those in the program.
        """
        for artifact, adapter in _adapter_files(bundle):
            for (offset, size), what in ((adapter.tables, "tables"), (adapter.mark, "mark")):
                yield FilePart(file=artifact.path, offset=offset, size=size, what=what)
        for artifact in bundle.manifest.artifacts:
            if artifact.role == "template":
                yield FilePart(file=artifact.path, offset=0, size=artifact.size, what="template")
        for program in sorted({method.program for method in bundle.manifest.methods}):
            path = bundle.file(program)
            with parsing(path):
                stored = pte.read(path)
                for offset, size, what in (*pte.parts(stored), *_package_parts(stored)):
                    yield FilePart(file=program, offset=offset, size=size, what=what)
                yield from _copies(bundle, stored, program)


def _readers(bundle: Bundle) -> Mapping[str, frozenset[str]]:
    """Return the methods that call each function, by its name: one that takes adapters as inputs is that of all of
    its slot plan.
    """
    manifest = bundle.manifest
    found: dict[str, set[str]] = defaultdict(set)
    plans = {adapter.name: adapter.plan for adapter in manifest.adapters}
    multifunction = len(manifest.base_methods) > 1
    for kind in naming.kinds(multifunction):
        for adapter in (None, *plans):
            method = naming.method_name(adapter, kind, multifunction)
            found[method].add(method)
            if adapter is not None:
                found[input_method(plans[adapter], kind)].add(method)
    return {name: frozenset(methods) for name, methods in found.items()}


def _adapter_files(bundle: Bundle) -> Iterator[tuple[Artifact, AdapterData]]:
    for artifact in bundle.manifest.artifacts:
        if artifact.role == ROLE:
            yield artifact, read_adapter(bundle.file(artifact))


def _adapter_blobs(file: AdapterData, path: str, methods: frozenset[str]) -> Iterator[Blob]:
    with blobfile.mapped(file.path) as buffer, memoryview(buffer) as data:
        for tensor, names in file.stretches:
            with data[tensor.offset : tensor.offset + tensor.size] as stored:
                digest = hashlib.sha256(stored).hexdigest()
            yield Blob(
                key=names[0],
                file=path,
                offset=tensor.offset,
                size=tensor.size,
                sha256=digest,
                methods=methods,
                group="lora",
            )


def _copies(bundle: Bundle, stored: pte.StoredProgram, program: str) -> Iterator[FilePart]:
    for index, found in enumerate(package.stored_packages(stored)):
        for artifact in bundle.manifest.artifacts:
            inside = artifact.path.removeprefix(f"{LOOSE_PACKAGES}/partition_{index}/")
            if artifact.role == LOOSE_PACKAGES and found.files.get(inside, (0, -1))[1] == artifact.size:
                place = (program, found.files[inside][0])
                yield FilePart(file=artifact.path, offset=0, size=artifact.size, what="copy", copy_of=place)


def _package_parts(stored: pte.StoredProgram) -> Iterator[tuple[int, int, str]]:
    for found in package.stored_packages(stored):
        yield (*found.index, "index of a package")
        for name in found.files:
            start, size = found.region(name)
            if name != package.WEIGHTS:
                yield start, size, name
                continue
            yield start, blobfile.ALIGNMENT, "header"
            for blob in stored_records(stored.path, start, size):
                yield start + blob.offset, blobfile.ALIGNMENT, "header"


def fingerprint_of(digests: Sequence[str]) -> str:
    """Return one fingerprint for the foundations of all partitions."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _foundation_digest(found: StoredPackage) -> str:
    """Hash a blob file from behind its header to the end of the last blob that a base method refers to."""
    model = mil.parse_model(found.read(package.MODEL))
    end = blobfile.ALIGNMENT
    digest = hashlib.sha256()
    if package.WEIGHTS not in found.files:
        return digest.hexdigest()
    start, size = found.region(package.WEIGHTS)
    with blobfile.mapped(found.program) as buffer, memoryview(buffer) as view, view[start : start + size] as weights:
        for name, function in model.mlProgram.functions.items():
            if name in naming.BASE_METHODS:
                for _, value in mil.blob_references(function):
                    blob = blobfile.blob_at(weights, value.offset, where=str(found.program))
                    end = max(end, blob.next_offset)
        with weights[blobfile.ALIGNMENT : end] as body:
            digest.update(body)
    return digest.hexdigest()


def _package_blobs(
    found: StoredPackage, program: str, index: int, readers: Mapping[str, frozenset[str]]
) -> Iterator[Blob]:
    if package.WEIGHTS not in found.files:
        return
    model = mil.parse_model(found.read(package.MODEL))
    methods: dict[int, set[str]] = defaultdict(set)
    names: dict[int, str] = {}
    for method, function in sorted(model.mlProgram.functions.items()):
        for name, value in mil.blob_references(function):
            methods[value.offset] |= readers.get(method, frozenset())
            if method in naming.BASE_METHODS:  # other functions do not name their weights (compaction.py)
                names.setdefault(value.offset, name)
    start, size = found.region(package.WEIGHTS)
    for blob, key in stored_blobs(found.program, start, size):
        users = frozenset(methods.pop(blob.offset, ()))
        yield Blob(
            key=f"partition_{index}/{blob.offset}",
            file=program,
            offset=start + blob.data_offset,
            size=blob.size,
            sha256=key.sha256,
            methods=users,
            group=_group(names[blob.offset]) if blob.offset in names else ("lora" if users else "unreferenced"),
        )
    if methods:
        offsets = ", ".join(map(str, sorted(methods)))
        raise BundleError(f"Functions refer to weights at offsets where none is stored: {offsets}", where=program)


def stored_blobs(path: Path, start: int, size: int) -> Iterator[tuple[blobfile.MilBlob, BlobKey]]:
    """Yield every blob of the blob file at `start` of `path`, one record after the other, with its hash."""
    with blobfile.mapped(path) as buffer, memoryview(buffer) as view, view[start : start + size] as weights:
        for blob in stored_records(path, start, size):
            yield blob, blobfile.key_of(weights, blob)


def stored_records(path: Path, start: int, size: int) -> Iterator[blobfile.MilBlob]:
    """Yield the record of every blob of the blob file at `start` of `path`."""
    with blobfile.mapped(path) as buffer, memoryview(buffer) as view, view[start : start + size] as weights:
        count = int.from_bytes(weights[:4], "little")
        offset = blobfile.ALIGNMENT
        for _ in range(count):
            blob = blobfile.blob_at(weights, offset, where=str(path))
            yield blob
            offset = blob.next_offset
        if offset != aligned(size, blobfile.ALIGNMENT):
            raise BundleError(f"The blob file has {size - offset} bytes behind its last weight", where=str(path))


def _group(name: str) -> str:
    """Return the part of the model that a base weight called `name` belongs to."""
    for word, group in (
        ("embeddings", "embedding"),
        ("attention", "attention"),
        ("feed_forward", "mlp"),
        ("output", "output"),
        ("norm", "norm"),
    ):
        if word in name:
            return group
    return "other"
