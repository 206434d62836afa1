"""The blobs of an XNNPACK bundle, read and hashed from its files."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from lora_core.bundle.bundle import Bundle
from lora_core.pte import Buffer
from lora_core.sharing.blobs import Blob, Part, WeightSharing
from lora_core.sharing.fingerprint import foundation_file_fingerprint
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.marks import MARKS, require_true_marks
from lora_core_xnnpack.files.named_blobs import mapped, named_strings
from lora_core_xnnpack.files.parts import data_parts, program_parts
from lora_core_xnnpack.files.program_root import program_blobs
from lora_core_xnnpack.multimethod.reading import method_texts

_DATA_ROLES = ("foundation", "adapter-data")


class XnnpackSharing(WeightSharing):
    """Base weights lie once in `foundation.ptd`; a program names the blobs it reads by key."""

    plain_weights = True

    def fingerprint(self, bundle: Bundle) -> str:
        """Return the SHA-256 of the foundation file's bytes."""
        return foundation_file_fingerprint(bundle)

    def blobs(self, bundle: Bundle) -> Iterator[Blob]:
        """Yield every named blob of the data files and programs; a method reads a blob if its program names the key."""
        programs = {method.program: mapped(bundle.file(method.program)) for method in bundle.manifest.methods}
        readers = _Readers(bundle, _texts(bundle, programs))
        for artifact in bundle.manifest.artifacts:
            if artifact.role not in (*_DATA_ROLES, "program"):
                continue
            path = bundle.file(artifact)
            data = programs[artifact.path] if artifact.path in programs else mapped(path)
            stored = program_blobs(data, path) if artifact.role == "program" else stored_blobs(data, path)
            digests = {
                blob.key: hashlib.sha256(data[blob.offset : blob.offset + blob.size]).hexdigest() for blob in stored
            }
            if artifact.role == "foundation":
                require_true_marks(path, digests, [bundle.file(program) for program in programs])
            for blob in (each for each in stored if each.key not in MARKS):
                yield Blob(
                    key=blob.key,
                    file=artifact.path,
                    offset=blob.offset,
                    size=blob.size,
                    sha256=digests[blob.key],
                    methods=readers.of_key(blob.key, artifact.adapter),
                    group=_group(blob.key) if artifact.role == "foundation" else "lora",
                )

    def parts(self, bundle: Bundle) -> Iterator[Part]:
        """Yield fronts of data files, programs (templates too) with what their plans refer to, relocation tables."""
        for artifact in bundle.manifest.artifacts:
            if artifact.role == "relocations":
                yield Part(file=artifact.path, offset=0, size=artifact.size, what="relocations")
                continue
            if artifact.role not in (*_DATA_ROLES, "program", "template"):
                continue
            path = bundle.file(artifact)
            read = data_parts if artifact.role in _DATA_ROLES else program_parts
            for offset, size, what in read(mapped(path), path):
                yield Part(file=artifact.path, offset=offset, size=size, what=what)


def _group(key: str) -> str:
    """Name a kind of base tensor; what portable kernels read is stored under a name, delegated weights are not."""
    for part, group in (("embeddings", "embedding"), ("norm", "norms"), ("rope", "rotary tables")):
        if part in key:
            return group
    return "linear layers"


def _texts(bundle: Bundle, programs: Mapping[str, Buffer]) -> dict[str, Buffer]:
    """Return for each method what names the blobs it reads: its program, or its part of a program of several."""
    methods = bundle.manifest.methods
    owners = Counter(method.program for method in methods)
    parts = {path: method_texts(programs[path], bundle.file(path)) for path, count in owners.items() if count > 1}
    return {
        method.name: parts[method.program][method.name] if method.program in parts else programs[method.program]
        for method in methods
    }


class _Readers:
    """Which methods name a key, found with one pass over each program and not one for each key."""

    def __init__(self, bundle: Bundle, texts: Mapping[str, Buffer]) -> None:
        self._methods: dict[bytes, set[str]] = defaultdict(set)
        self._owned: dict[str | None, set[str]] = defaultdict(set)
        keys: dict[int, set[bytes]] = {}  # by identity: methods may be in one text
        for method in bundle.manifest.methods:
            text = texts[method.name]
            if id(text) not in keys:
                keys[id(text)] = named_strings(text)
            self._owned[method.adapter].add(method.name)
            for key in keys[id(text)]:
                self._methods[key].add(method.name)

    def of_key(self, key: str, owner: str | None) -> frozenset[str]:
        """Return the methods (of the adapter `owner`; None: all) that name `key`."""
        found = self._methods.get(key.encode("utf-8"), set())
        return frozenset(found if owner is None else found & self._owned[owner])
