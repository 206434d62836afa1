"""Files that carry their own digest, damaged by somebody who makes the digest true again.

Of a damaged one nothing but its header and digest is read; a stranger's is whole. So what is damaged here is the JSON
of the header, and the file is made of it anew.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.layers import ModelSummary
from tests.security.fuzz_target import ALLOWED_ELSE, Target

_SIZE = 1 << 16
_NO_DIGEST = "0" * 64


def sealed_containers(folder: Path) -> dict[str, Target]:
    """Return the targets of what qnn_sim reads from its containers."""
    from lora_core_qnn_sim.artifacts import context_binary, section
    from lora_core_qnn_sim.artifacts.initial import initial_branch
    from lora_core_qnn_sim.graph.spec import GraphSpec, LlamaDims, LoraSlot

    dims = LlamaDims(
        n_layers=2,
        dim=8,
        hidden_dim=8,
        n_heads=2,
        n_kv_heads=1,
        head_dim=4,
        vocab_size=16,
        norm_eps=1e-5,
    )
    slots = tuple(
        LoraSlot(layer=f"layers.{layer}.self_attn.q_proj", in_features=8, out_features=8, rank=2) for layer in range(2)
    )
    spec = GraphSpec(dims=dims, slots=slots, context_len=16, input_len=8, act_bits=16, lora_bits=8)
    context = context_binary.ContextBinary(
        spec=spec,
        mode="adapter_only",
        foundation="f" * 64,
        branch=initial_branch(spec),
        lora=context_binary.zero_lora(spec),
        adapters=("alice",),
    )
    context_binary.write_context(folder / "context.bin", context)
    part = section.write_section(
        *(folder, context, "alice", "combined"),
        encodings_id="e" * 64,
        weights={name: np.ones_like(value) for name, value in context.lora.items()},
        encodings=context.branch,
    )
    readers: Mapping[str, tuple[str, Path, Callable[[Path], object]]] = {
        "qnn_sim context": (context_binary.KIND, folder / "context.bin", context_binary.read_context),
        "qnn_sim section": (section.KIND, part, section.read_section),
    }
    return {
        name: Target(read=_resealed(read, path, kind), seeds=[_document(path)], allowed=ALLOWED_ELSE)
        for name, (kind, path, read) in readers.items()
    }


def sealed_packages(folder: Path, package: bytes, base: ModelSummary) -> Target:
    """Return the target of what is read from an adapter's package, which fits `base`, once it is whole."""
    from lora_core.adapters.packages.reading import AdapterPackage

    def read(document: bytes) -> None:
        told = json.loads(document)
        _require(isinstance(told, dict) and all(isinstance(told.get(name), dict) for name in ("fields", "tensors")))
        path = folder / "sealed.lora"
        path.write_bytes(_safetensors(told["tensors"], {**told["fields"], "digest": _NO_DIGEST}))
        opened = AdapterPackage.open(path)
        opened.implied_base()
        opened.adapter("alice", base)

    header = _header(package)
    fields = header.pop("__metadata__")
    return Target(read=read, seeds=[json.dumps({"fields": fields, "tensors": header}).encode()], allowed=ALLOWED_ELSE)


def _header(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header


def _document(path: Path) -> bytes:
    """Return the JSON of a container: its detail, and its tensors as the header tells of them."""
    header = _header(path.read_bytes())
    return json.dumps({"detail": json.loads(header.pop("__metadata__")["detail"]), "tensors": header}).encode()


def _require(whole: bool) -> None:
    if not whole:
        raise ValueError("nothing that a file can be made of")


def _safetensors(tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    """Return a file of zeros with this header, as long as it says, with the digest of all in the place for it."""
    text = json.dumps({"__metadata__": metadata, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    ends = [each["data_offsets"][1] for each in tensors.values() if _has_offsets(each)]
    data = struct.pack("<Q", len(text)) + text + bytes(min(max([0, *ends]), _SIZE))
    return data.replace(_NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _has_offsets(entry: object) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and type(offsets[1]) is int


def _resealed(read: Callable[[Path], object], path: Path, kind: str) -> Callable[[bytes], object]:
    """Return a reader of a container that is made of a document as `_document` returns."""

    def run(document: bytes) -> object:
        told = json.loads(document)
        _require(isinstance(told, dict) and isinstance(told.get("tensors"), dict))
        metadata = {"digest": _NO_DIGEST, "format": "lora-core-qnn-sim", "version": "1", "kind": kind}
        path.write_bytes(_safetensors(told["tensors"], {**metadata, "detail": json.dumps(told.get("detail"))}))
        return read(path)

    return run
