"""The blobs of a bundle: tensors of the weights file by the model's own account, and those of adapters."""

from __future__ import annotations

import hashlib
import importlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError
from lora_core.intake.files import open_regular
from lora_core.intake.parsing import parsing
from lora_core.sharing.blobs import Blob, FilePart, WeightSharing
from lora_core.sharing.fingerprint import foundation_file_fingerprint
from lora_core.sharing.proof import require_foundation
from lora_core_onnx.names import GENAI, GENAI_TEXT, MODEL, WEIGHTS
from lora_core_onnx.storage.model_file import foundation_of
from lora_core_onnx.storage.weights import External

_LARGEST_CONSTANT = 4096
"""Bytes of a node or an initializer with its names."""


class OnnxSharing(WeightSharing):
    """Base weights lie once in the weights file, which the one model reads for every adapter."""

    plain_weights = True

    def fingerprint(self, bundle: Bundle) -> str:
        """Return the SHA-256 of the weights file's bytes."""
        return foundation_file_fingerprint(bundle)

    def blobs(self, bundle: Bundle) -> Iterator[Blob]:
        """Yield every tensor that the model or an adapter stores; all methods read all of the base."""
        from lora_core_onnx.storage.adapter_file import read_adapter

        everyone = frozenset(method.name for method in bundle.manifest.methods)
        for tensor in external_tensors(bundle.file(MODEL)):
            place = (tensor.name, tensor.offset, tensor.size)
            yield _blob(bundle, WEIGHTS, place, everyone, _group(tensor.name))
        for artifact in bundle.manifest.artifacts:
            if artifact.role != "adapter-data" or artifact.adapter is None:
                continue
            for parameter in read_adapter(bundle.file(artifact)).parameters:
                place = (parameter.name, parameter.offset, parameter.size)
                yield _blob(bundle, artifact.path, place, frozenset({artifact.adapter}), "lora")

    def parts(self, bundle: Bundle) -> Iterator[FilePart]:
        """Yield the model, unless it hides tensors, configurations, and what adapters' files are laid out by."""
        from lora_core_onnx.storage.adapter_file import read_adapter

        for artifact in bundle.manifest.artifacts:
            path = bundle.file(artifact)
            if artifact.role == "adapter-data":
                for offset, size in read_adapter(path).tables:
                    yield FilePart(file=artifact.path, offset=offset, size=size, what="tables")
            elif artifact.path == MODEL and not holds_tensors(path):
                yield FilePart(file=MODEL, offset=0, size=artifact.size, what="program")
            elif artifact.path in (GENAI, GENAI_TEXT):
                yield FilePart(file=artifact.path, offset=0, size=artifact.size, what="configuration")


def require_own(bundle: Bundle) -> None:
    """Raise `BundleError` if the stored base, or that which the model names, is not the one that was exported."""
    require_foundation(bundle, foundation_of(bundle.file(MODEL)))
    require_foundation(bundle, foundation_file_fingerprint(bundle))


def external_tensors(model: Path) -> list[External]:
    """Return the tensors that the model at `model` keeps in its weights file, in stored order."""
    import onnx

    with parsing(model):
        tensors = _graph(model).initializer
        found = [_external(tensor) for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    return sorted(found, key=lambda tensor: tensor.offset)


def holds_tensors(model: Path) -> bool:
    """Say whether something in the model at `model` is larger than a node and its constants can be."""
    with parsing(model):
        graph = _graph(model)
        sizes = (each.ByteSize() for field in (graph.initializer, graph.node) for each in field)
        return max(sizes, default=0) > _LARGEST_CONSTANT


def _graph(model: Path) -> Any:
    import onnx

    try:
        return onnx.load(model, load_external_data=False).graph
    except importlib.import_module("google.protobuf.message").DecodeError as error:
        raise ValueError(str(error)) from error


def _external(tensor: object) -> External:
    place = {entry.key: entry.value for entry in tensor.external_data}  # type: ignore[attr-defined]
    if place.get("location") != WEIGHTS:
        raise ValueError(f"a tensor lies in {place.get('location')!r}")
    return External(
        name=tensor.name,  # type: ignore[attr-defined]
        dtype=tensor.data_type,  # type: ignore[attr-defined]
        shape=tuple(tensor.dims),  # type: ignore[attr-defined]
        offset=int(place["offset"]),
        size=int(place["length"]),
    )


def _blob(bundle: Bundle, file: str, place: tuple[str, int, int], methods: frozenset[str], group: str) -> Blob:
    key, offset, size = place
    path = bundle.file(file)
    with open_regular(path, BundleError) as stream, parsing(path), _mapped(stream) as data:
        if offset < 0 or size < 0 or offset + size > len(data):
            raise ValueError(f"{key} ends behind the file")
        digest = hashlib.sha256(memoryview(data)[offset : offset + size]).hexdigest()
    return Blob(key=key, file=file, offset=offset, size=size, sha256=digest, methods=methods, group=group)


def _mapped(stream: BinaryIO) -> mmap.mmap:
    return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _group(name: str) -> str:
    return next((word for word in ("embed_tokens", "lm_head", "self_attn", "mlp") if word in name), "other")
