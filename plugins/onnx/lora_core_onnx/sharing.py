"""The blobs of a bundle: tensors of the weights file by the model's own account, and those of adapters."""

from __future__ import annotations

import hashlib
import importlib
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError
from lora_core.intake.files import open_regular, read_regular
from lora_core.intake.limits import TABLE
from lora_core.intake.parsing import parsing
from lora_core.pte import Buffer
from lora_core.sharing.blobs import Blob, FilePart, WeightSharing
from lora_core.sharing.fingerprint import foundation_file_fingerprint
from lora_core.sharing.proof import require_foundation
from lora_core_onnx.names import GENAI, GENAI_TEXT, MODEL, WEIGHTS
from lora_core_onnx.storage.model_file import ModelFile, read_model
from lora_core_onnx.storage.stretches import require_apart
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
        tensors = external_tensors(bundle.file(MODEL))
        with _opened(bundle.file(WEIGHTS)) as data:
            for tensor in tensors:
                place = (tensor.name, tensor.offset, tensor.size)
                yield _blob(data, WEIGHTS, place, everyone, _group(tensor.name))
        for artifact in bundle.manifest.artifacts:
            if artifact.role != "adapter-data" or artifact.adapter is None:
                continue
            methods = frozenset({artifact.adapter})
            parameters = read_adapter(bundle.file(artifact)).parameters
            with _opened(bundle.file(artifact)) as data:
                for parameter in parameters:
                    place = (parameter.name, parameter.offset, parameter.size)
                    yield _blob(data, artifact.path, place, methods, "lora")

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


def require_own(bundle: Bundle) -> ModelFile:
    """Return what the model says of itself.

    Raises `BundleError` if the stored base, or that which the model names, is not the one that was exported, or if the
    model has tensors elsewhere.
    """
    path = bundle.file(MODEL)
    model = read_model(path)
    require_foundation(bundle, model.foundation)
    if strange := sorted(model.files - {WEIGHTS}):
        what = f"The model has tensors in {strange[0]!r}, which is not the weights file"
        raise BundleError(what, where=str(path), remedy="The bundle is damaged or foreign: export it again.")
    require_foundation(bundle, foundation_file_fingerprint(bundle))
    return model


def external_tensors(model: Path) -> list[External]:
    """Return the tensors that the model at `model` keeps in its weights file, in stored order."""
    import onnx

    graph = _graph(model)
    with parsing(model):
        tensors = graph.initializer
        found = [_external(tensor) for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
        found = sorted(found, key=lambda tensor: (tensor.offset, tensor.size))
        require_apart([(tensor.offset, tensor.size) for tensor in found])
    return found


def holds_tensors(model: Path) -> bool:
    """Say whether something in the model at `model` is larger than a node and its constants can be."""
    graph = _graph(model)
    sizes = (each.ByteSize() for field in (graph.initializer, graph.node) for each in field)
    return max(sizes, default=0) > _LARGEST_CONSTANT


def _graph(model: Path) -> Any:
    import onnx

    data = read_regular(model, TABLE, BundleError, links=False)
    with parsing(model):
        try:
            return onnx.load_model_from_string(data).graph
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


def _blob(data: Hashed, file: str, place: tuple[str, int, int], methods: frozenset[str], group: str) -> Blob:
    key, offset, size = place
    return Blob(
        key=key,
        file=file,
        offset=offset,
        size=size,
        sha256=data.sha256(key, offset, size),
        methods=methods,
        group=group,
    )


class Hashed:
    """The bytes of a file, each stretch of which is hashed once: tied tensors are two names of one."""

    def __init__(self, path: Path, data: Buffer) -> None:
        self._path, self._data = path, data
        self._known: dict[tuple[int, int], str] = {}

    def sha256(self, key: str, offset: int, size: int) -> str:
        """Return the hash of the tensor `key`; raises `BundleError` if it does not lie in the file."""
        if (offset, size) not in self._known:
            with parsing(self._path):
                if offset < 0 or size < 0 or offset + size > len(self._data):
                    raise ValueError(f"{key} ends behind the file")
            with memoryview(self._data) as view:
                self._known[offset, size] = hashlib.sha256(view[offset : offset + size]).hexdigest()
        return self._known[offset, size]


@contextmanager
def _opened(path: Path) -> Iterator[Hashed]:
    with open_regular(path, BundleError) as stream:
        if path.stat().st_size == 0:
            yield Hashed(path, b"")
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield Hashed(path, data)


def _group(name: str) -> str:
    return next((word for word in ("embed_tokens", "lm_head", "self_attn", "mlp") if word in name), "other")
