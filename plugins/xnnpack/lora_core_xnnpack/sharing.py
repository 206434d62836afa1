"""The blobs of an XNNPACK bundle, read and hashed from its files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping

from lora_core.bundle.bundle import Bundle
from lora_core.pte import Buffer
from lora_core.sharing.blobs import Blob, WeightSharing
from lora_core.sharing.fingerprint import foundation_file_fingerprint
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.named_blobs import mapped, names_key
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
        texts = _texts(bundle, programs)
        for artifact in bundle.manifest.artifacts:
            if artifact.role not in (*_DATA_ROLES, "program"):
                continue
            path = bundle.file(artifact)
            data = programs[artifact.path] if artifact.path in programs else mapped(path)
            stored = program_blobs(data, path) if artifact.role == "program" else stored_blobs(data, path)
            for blob in stored:
                yield Blob(
                    key=blob.key,
                    file=artifact.path,
                    offset=blob.offset,
                    size=blob.size,
                    sha256=hashlib.sha256(data[blob.offset : blob.offset + blob.size]).hexdigest(),
                    methods=_readers(bundle, texts, blob.key, artifact.adapter),
                    group=_group(blob.key) if artifact.role == "foundation" else "lora",
                )


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


def _readers(bundle: Bundle, texts: Mapping[str, Buffer], key: str, owner: str | None) -> frozenset[str]:
    return frozenset(
        method.name
        for method in bundle.manifest.methods
        if owner in (None, method.adapter) and names_key(texts[method.name], key)
    )
