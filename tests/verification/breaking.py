"""Ways to break a bundle, or an adapter before it is linked."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from lora_core_xnnpack.artifacts import MARK_DETAIL
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.marks import mark_of
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.hashing import file_sha256
from lora_core.bundle.manifest import dumps
from lora_core.errors import BundleError
from lora_core.pipeline.verify import VerifyReport

Tensors = dict[str, np.ndarray]


@attrs.frozen(kw_only=True)
class Sources:
    """What bundles were exported from."""

    model: Path
    adapters: Mapping[str, Path]


def verify(bundle: Bundle, sources: Sources, **more: Any) -> VerifyReport:
    """Verify with all sources, unless `more` has others."""
    arguments = {"adapters": sources.adapters, "tokens": 6, **more}
    return lora_core.verify(bundle.path, sources.model, **arguments)


def failed(report: VerifyReport) -> set[tuple[str, str]]:
    """Return check and subject of everything that failed."""
    return {(finding.check, finding.subject) for finding in report.failures}


def detail(report: VerifyReport, check: str, subject: str) -> str:
    """Return what one check says."""
    return next(each.detail for each in report.findings if (each.check, each.subject) == (check, subject))


def mutant(
    original: Path,
    directory: Path,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> Path:
    """Write a copy of an adapter with other fields in its configuration, or other tensors."""
    shutil.copytree(original, directory)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(config or {})}))
    weights = directory / "adapter_model.safetensors"
    changed = tensors(load_file(weights))
    save_file(changed, weights, metadata={"format": "pt"})
    return directory


def swap_layers(tensors: Tensors) -> Tensors:
    """Give layer 0 the matrices of layer 1 and the other way round."""
    other = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    return {
        next(key.replace(one, two) for one, two in other.items() if one in key): value for key, value in tensors.items()
    }


def zeros(tensors: Tensors) -> Tensors:
    """Make every matrix zero."""
    return {key: np.zeros_like(value) for key, value in tensors.items()}


def replace_adapter(bundle: Bundle, name: str, directory: Path) -> Bundle:
    """Link another adapter in place of `name` and let the manifest say that it is the old one."""
    digest = next(each.digest for each in bundle.manifest.adapters if each.name == name)
    lora_core.remove(bundle.path, [name])
    linked = lora_core.add(bundle.path, {name: directory})
    adapters = [attrs.evolve(each, digest=digest) if each.name == name else each for each in linked.manifest.adapters]
    return write_manifest(linked, adapters=tuple(adapters))


def write_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Write the manifest with `changes`."""
    manifest = attrs.evolve(bundle.manifest, **changes)
    (bundle.path / "manifest.json").write_bytes(dumps(manifest))
    return attrs.evolve(bundle, manifest=manifest)


def rehash(bundle: Bundle) -> Bundle:
    """Let manifest and files have the hashes of what is there, so that only numbers can tell."""
    bundle = _marked_anew(bundle)
    artifacts = tuple(attrs.evolve(each, sha256=file_sha256(bundle.file(each))) for each in bundle.manifest.artifacts)
    foundation = next(each.sha256 for each in artifacts if each.role == "foundation")
    adapters = tuple(attrs.evolve(each, foundation=foundation) for each in bundle.manifest.adapters)
    return write_manifest(bundle, artifacts=artifacts, foundation=foundation, adapters=adapters)


def _marked_anew(bundle: Bundle) -> Bundle:
    """Let the foundation carry the mark of what it holds, and the programs with it."""
    path = bundle.file("foundation.ptd")
    data = path.read_bytes()
    try:
        blobs = stored_blobs(data, path)
    except BundleError:
        return bundle  # it has other faults than that
    digests = {each.key: hashlib.sha256(data[each.offset : each.offset + each.size]).hexdigest() for each in blobs}
    old, new = bundle.manifest.detail[MARK_DETAIL], mark_of(digests)
    for artifact in bundle.manifest.artifacts:
        file = bundle.file(artifact)
        file.write_bytes(file.read_bytes().replace(old.encode(), new.encode()))
    return attrs.evolve(
        bundle, manifest=attrs.evolve(bundle.manifest, detail={**bundle.manifest.detail, MARK_DETAIL: new})
    )


def flip_bit(file: Path, position: int = -1) -> None:
    """Flip the lowest bit of one byte."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def swap_weights(bundle: Bundle, model: Path, other: Path) -> int:
    """Overwrite the weights of `model` in the foundation by those of `other`, under their old keys; return how many."""
    file = bundle.path / "foundation.ptd"
    data = bytearray(file.read_bytes())
    mine, others = load_file(model / "model.safetensors"), load_file(other / "model.safetensors")
    swapped = 0
    for name, tensor in mine.items():
        at = data.find(tensor.tobytes())
        if at >= 0:
            data[at : at + tensor.nbytes] = others[name].tobytes()
            swapped += 1
    file.write_bytes(data)
    return swapped
