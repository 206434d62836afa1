"""Containers that carry their own digest, damaged by somebody who makes the digest true again: qnn_sim's.

Of a damaged container nothing but the digest is read; a stranger's is whole. So what is damaged here is the JSON of its
header, and the container is made of it anew.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

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


def _document(path: Path) -> bytes:
    """Return the JSON of a container: its detail, and its tensors as the header tells of them."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return json.dumps({"detail": json.loads(header.pop("__metadata__")["detail"]), "tensors": header}).encode()


def _resealed(read: Callable[[Path], object], path: Path, kind: str) -> Callable[[bytes], object]:
    """Return a reader of a container that is made of a document as `_document` returns."""

    def run(document: bytes) -> object:
        told = json.loads(document)
        if not isinstance(told, dict) or not isinstance(told.get("tensors"), dict):
            raise ValueError("nothing that a container can be made of")
        metadata = {"digest": _NO_DIGEST, "format": "lora-core-qnn-sim", "version": "1", "kind": kind}
        header: dict[str, Any] = {"__metadata__": {**metadata, "detail": json.dumps(told.get("detail"))}}
        body = json.dumps({**header, **told["tensors"]}).encode()
        body += b" " * (-(len(body) + 8) % 64)
        data = struct.pack("<Q", len(body)) + body + bytes(_SIZE)
        path.write_bytes(data.replace(_NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode(), 1))
        return read(path)

    return run
