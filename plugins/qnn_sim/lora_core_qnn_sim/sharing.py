"""Stored tensors of a bundle: one foundation for all methods, sections for their own adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lora_core.bundle.bundle import Bundle
from lora_core.sharing.blobs import Blob, WeightSharing

if TYPE_CHECKING:
    from lora_core_qnn_sim.artifacts.container import Container


class QnnSimSharing(WeightSharing):
    """Reads the containers of a bundle and hashes every tensor's bytes."""

    def blobs(self, bundle: Bundle) -> Iterable[Blob]:
        """Yield the tensors of foundation, context binary and sections."""
        import numpy as np

        from lora_core_qnn_sim.artifacts.container import read_container

        for file, (kind, methods) in _readers(bundle).items():
            container = read_container(bundle.file(file), kind)
            if file == bundle.manifest.detail.get("default"):
                yield _zero_blob(container, file, methods)
                continue
            for key, array in container.tensors.items():
                yield Blob(
                    key=key,
                    file=file,
                    offset=container.offsets[key],
                    size=array.nbytes,
                    sha256=hashlib.sha256(np.ascontiguousarray(array).data).hexdigest(),
                    methods=methods,
                    group=_group(kind, key),
                )

    def fingerprint(self, bundle: Bundle) -> str:
        """Return the digest of the stored foundation, checked against its bytes."""
        from lora_core_qnn_sim.artifacts.container import read_container

        return read_container(bundle.file("foundation.bin"), "foundation").digest


def _zero_blob(container: Container, file: str, methods: frozenset[str]) -> Blob:
    """Return the zero section's data as one blob: it is applied whole, and its equal zeros are no copies of a base."""
    begin = min(container.offsets.values())
    data = container.path.read_bytes()[begin:]
    return Blob(
        key="default_adapter", file=file, offset=begin, size=len(data), sha256=hashlib.sha256(data).hexdigest(),
        methods=methods, group="lora",
    )  # fmt: skip


def _readers(bundle: Bundle) -> Mapping[str, tuple[str, frozenset[str]]]:
    everyone = frozenset(method.name for method in bundle.manifest.methods)
    files = {"foundation.bin": ("foundation", everyone), "context.bin": ("context", everyone)}
    default = bundle.manifest.detail.get("default")
    if default:
        files[default] = ("section", frozenset({"forward"}))
    for adapter in bundle.manifest.adapters:
        for path in [*adapter.detail.get("sections", {}).values(), adapter.detail.get("encodings")]:
            if path:
                readers = files[path][1] if path in files else frozenset[str]()
                files[path] = ("section", readers | {adapter.name})
    return files


def _group(kind: str, key: str) -> str:
    if kind == "section" or ".lora_" in key:
        return "lora encodings" if key.endswith(".encoding") else "lora"
    if key.endswith(".encoding"):
        return "encodings"
    return next(
        (word for word in ("embed_tokens", "lm_head", "self_attn", "mlp", "calibration") if word in key), "other"
    )
