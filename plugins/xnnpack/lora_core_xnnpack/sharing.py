"""The blobs of an XNNPACK bundle, read and hashed from its files."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_core.adapters.slots.input_names import input_method
from lora_core.bundle.bundle import Bundle
from lora_core.pte import Buffer, ContainerHeader
from lora_core.sharing.blobs import Blob, FilePart, WeightSharing
from lora_core.sharing.fingerprint import foundation_file_fingerprint
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.marks import is_mark, require_adapters, says_true
from lora_core_xnnpack.files.named_blobs import content_keys, mapped, named_strings
from lora_core_xnnpack.files.parts import data_parts, program_parts
from lora_core_xnnpack.files.program_root import damaged, program_blobs
from lora_core_xnnpack.inputs.linking import FORWARD, takes_adapters
from lora_core_xnnpack.multimethod.reading import method_keys
from lora_core_xnnpack.split.inside import inside

_DATA_ROLES = ("foundation", "adapter-data")


class XnnpackSharing(WeightSharing):
    """Base weights lie once in `foundation.ptd`; a program names the blobs it reads by key."""

    plain_weights = True

    def fingerprint(self, bundle: Bundle) -> str:
        """Return the SHA-256 of the foundation file's bytes; another one of a file whose mark is a lie."""
        found = foundation_file_fingerprint(bundle)
        path = next(bundle.file(each) for each in bundle.manifest.artifacts if each.role == "foundation")
        return found if says_true(path) else hashlib.sha256(f"{found} under a false mark".encode()).hexdigest()

    def blobs(self, bundle: Bundle) -> Iterator[Blob]:
        """Yield every named blob of the data files and programs; a method reads a blob if its program names the key."""
        programs = {method.program: mapped(bundle.file(method.program)) for method in bundle.manifest.methods}
        readers = _Readers(bundle, _keys(bundle, programs))
        yield from _inside(bundle)
        for artifact in bundle.manifest.artifacts:
            if artifact.role not in (*_DATA_ROLES, "program"):
                continue
            path = bundle.file(artifact)
            data = programs[artifact.path] if artifact.path in programs else mapped(path)
            stored = program_blobs(data, path) if artifact.role == "program" else stored_blobs(data, path)
            digests = {
                blob.key: hashlib.sha256(data[blob.offset : blob.offset + blob.size]).hexdigest() for blob in stored
            }
            for blob in (each for each in stored if not is_mark(each.key)):
                yield Blob(
                    key=blob.key,
                    file=artifact.path,
                    offset=blob.offset,
                    size=blob.size,
                    sha256=digests[blob.key],
                    methods=readers.of_file(artifact.adapter)
                    if artifact.adapter is not None and takes_adapters(bundle)
                    else readers.of_key(blob.key, artifact.adapter),
                    group=_group(blob.key) if artifact.role == "foundation" else "lora",
                )

    def parts(self, bundle: Bundle) -> Iterator[FilePart]:
        """Yield fronts of data files, programs (templates too) with what their plans refer to, relocation tables.

        Raises `BundleError` for a program that says that it is of other adapters than the manifest.
        """
        adapters: dict[str, list[str]] = defaultdict(list)
        for method in bundle.manifest.methods:
            adapters[method.program] += [] if method.adapter is None else [method.adapter]
        for artifact in bundle.manifest.artifacts:
            if artifact.role == "relocations":
                yield FilePart(file=artifact.path, offset=0, size=artifact.size, what="relocations")
                continue
            if artifact.role not in (*_DATA_ROLES, "program", "template"):
                continue
            path = bundle.file(artifact)
            if artifact.role in ("program", "template"):
                require_adapters(adapters[artifact.path], path)
            read = data_parts if artifact.role in _DATA_ROLES else program_parts
            for offset, size, what in read(mapped(path), path):
                yield FilePart(file=artifact.path, offset=offset, size=size, what=what)


def _inside(bundle: Bundle) -> Iterator[Blob]:
    """Yield what lies in adapters' programs without a name: rows of an embedding."""
    plans = {adapter.name: adapter.plan for adapter in bundle.manifest.adapters}
    for method in bundle.manifest.methods:
        if method.adapter is None:
            continue
        for found in inside(bundle, method.adapter, plans[method.adapter]):
            yield Blob(
                key=f"{found.tensor.module} {found.tensor.part}",
                file=method.program,
                offset=found.offset,
                size=found.tensor.size,
                sha256=hashlib.sha256(found.values.data.cast("B")).hexdigest(),
                methods=frozenset((method.name,)),
                group="lora",
            )


def _group(key: str) -> str:
    """Name a kind of base tensor; what portable kernels read is stored under a name, delegated weights are not."""
    for part, group in (("embeddings", "embedding"), ("norm", "norms"), ("rope", "rotary tables")):
        if part in key:
            return group
    return "linear layers"


def _keys(bundle: Bundle, programs: Mapping[str, Buffer]) -> dict[str, set[bytes]]:
    """Return for each method the keys of what it reads: those in its program, or in its part of one of several."""
    methods = bundle.manifest.methods
    if takes_adapters(bundle):
        return _keys_of_inputs(bundle, programs)
    owners = Counter(method.program for method in methods)
    parts = {path: method_keys(programs[path], bundle.file(path)) for path, count in owners.items() if count > 1}
    fronts: dict[str, set[bytes]] = {}
    return {
        method.name: parts[method.program][method.name]
        if method.program in parts
        else _program_keys(programs[method.program], bundle.file(method.program), fronts)
        for method in methods
    }


def _keys_of_inputs(bundle: Bundle, programs: Mapping[str, Buffer]) -> dict[str, set[bytes]]:
    """Return for each method what it reads where adapters are inputs: an adapter's is that of its slot plan."""
    plans = {adapter.name: adapter.plan for adapter in bundle.manifest.adapters}
    found = {path: method_keys(program, bundle.file(path)) for path, program in programs.items()}
    return {
        method.name: found[method.program][
            method.name if method.adapter is None else input_method(plans[method.adapter], FORWARD)
        ]
        for method in bundle.manifest.methods
    }


def _program_keys(program: Buffer, path: Path, fronts: dict[str, set[bytes]]) -> set[bytes]:
    """Return the keys that a program of one method names: in its plan, which adapters of one shape have in common and
    `fronts` remembers, and in its delegates' payloads.
    """
    try:
        size = ContainerHeader.read(program).program_size
    except ValueError as error:
        raise damaged(path, error) from error
    view = memoryview(program)
    digest = hashlib.sha256(view[:size]).hexdigest()
    if digest not in fronts:
        fronts[digest] = named_strings(view[:size])
    return fronts[digest] | content_keys(view[size:])


class _Readers:
    """Which methods name a key."""

    def __init__(self, bundle: Bundle, keys: Mapping[str, set[bytes]]) -> None:
        self._methods: dict[bytes, set[str]] = defaultdict(set)
        self._owned: dict[str | None, set[str]] = defaultdict(set)
        for method in bundle.manifest.methods:
            self._owned[method.adapter].add(method.name)
            for key in keys[method.name]:
                self._methods[key].add(method.name)

    def of_key(self, key: str, owner: str | None) -> frozenset[str]:
        """Return the methods (of the adapter `owner`; None: all) that name `key`."""
        found = self._methods.get(key.encode("utf-8"), set())
        return frozenset(found if owner is None else found & self._owned[owner])

    def of_file(self, owner: str) -> frozenset[str]:
        """Return the methods that take everything in the file of the adapter `owner`."""
        return frozenset(self._owned[owner])
