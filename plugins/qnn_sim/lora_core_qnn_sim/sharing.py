"""Stored tensors of a bundle: one foundation for all methods, sections for their own adapters."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError
from lora_core.sharing.blobs import Blob, FilePart, WeightSharing
from lora_core_qnn_sim.artifacts import CONTEXT, FOUNDATION

if TYPE_CHECKING:
    from lora_core_qnn_sim.artifacts.container import Container


class QnnSimSharing(WeightSharing):
    """Reads the containers of a bundle and hashes every tensor's bytes."""

    def blobs(self, bundle: Bundle) -> Iterable[Blob]:
        """Yield the tensors of foundation, context binary and sections; a section's encodings are one table."""
        from lora_core_qnn_sim.artifacts.container import read_container
        from lora_core_qnn_sim.artifacts.encoding_tensors import SUFFIX

        for file, (kind, methods) in _readers(bundle).items():
            container = read_container(bundle.file(file), kind)
            keys = list(container.tensors)
            if file == bundle.manifest.detail.get("default"):
                # The zero section is applied whole: its equal zeros are no copies of a base.
                yield _joined(container, "default_adapter", keys, file, methods, "lora")
                continue
            tables = [key for key in keys if kind == "section" and key.endswith(SUFFIX)]
            if tables:
                # So are its encodings, of which some hold for any adapter: the grid of probabilities is 0 to 1.
                yield _joined(container, "encodings", tables, file, methods, "lora encodings")
            for key in keys:
                if key not in tables:
                    yield _joined(container, key, [key], file, methods, _group(kind, key))

    def parts(self, bundle: Bundle) -> Iterator[FilePart]:
        """Yield the header of every container."""
        from lora_core_qnn_sim.artifacts.container import header_size

        for file in _readers(bundle):
            yield FilePart(file=file, offset=0, size=header_size(bundle.file(file)), what="header")

    def fingerprint(self, bundle: Bundle) -> str:
        """Return the digest of the stored foundation, checked against its bytes."""
        from lora_core_qnn_sim.artifacts.container import read_container

        return read_container(bundle.file(FOUNDATION), "foundation").digest


def _joined(
    container: Container, key: str, tensors: Sequence[str], file: str, methods: frozenset[str], group: str
) -> Blob:
    """Return tensors that lie one after another in the file as one blob."""
    begin = min(container.offsets[name] for name in tensors)
    end = max(container.offsets[name] + container.tensors[name].nbytes for name in tensors)
    if end - begin != sum(container.tensors[name].nbytes for name in tensors):
        raise BundleError(
            f"The tensors of {key} do not lie one after another in {file}",
            where=str(container.path),
            remedy="Export the bundle again, or restore the file from a copy.",
        )
    with container.path.open("rb") as stream:
        stream.seek(begin)
        data = stream.read(end - begin)
    return Blob(
        key=key,
        file=file,
        offset=begin,
        size=end - begin,
        sha256=hashlib.sha256(data).hexdigest(),
        methods=methods,
        group=group,
    )


def _readers(bundle: Bundle) -> Mapping[str, tuple[str, frozenset[str]]]:
    everyone = frozenset(method.name for method in bundle.manifest.methods)
    default = bundle.manifest.detail.get("default")
    # Encodings that a group shares are read by all of its members: sets that grow, made whole once.
    sections: dict[str, set[str]] = defaultdict(set)
    if default:
        sections[default].add("forward")
    for adapter in bundle.manifest.adapters:
        for path in [*adapter.detail.get("sections", {}).values(), adapter.detail.get("encodings")]:
            if path:
                sections[path].add(adapter.name)
    files = {FOUNDATION: ("foundation", everyone), CONTEXT: ("context", everyone)}
    return files | {path: ("section", frozenset(readers)) for path, readers in sections.items()}


def _group(kind: str, key: str) -> str:
    if kind == "section" or ".lora_" in key:
        return "lora encodings" if key.endswith(".encoding") else "lora"
    if key.endswith(".encoding"):
        return "encodings"
    return next(
        (word for word in ("embed_tokens", "lm_head", "self_attn", "mlp", "calibration") if word in key), "other"
    )
