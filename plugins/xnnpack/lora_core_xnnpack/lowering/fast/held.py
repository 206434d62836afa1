"""Leave constants where they are that several lowerings have in common."""

from __future__ import annotations

import copy
import ctypes
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lora_core_xnnpack.lowering.fast.patching import Patches

if TYPE_CHECKING:
    from lora_core_xnnpack.lowering.known import KnownTensors


def leave_where_they_are(patches: Patches, *, known: KnownTensors) -> None:
    """Take the bytes and the SHA-256 of constants that `known` holds from there, and what is made of them.

    Goes behind `share_constants` and `pack_at_once`, which have the others. ExecuTorch 1.5.1 copies and hashes each
    (`backends/xnnpack/operators/node_visitor.py`, `exir/emit/_emitter.py`, `exir/_serialize/_named_data_store.py`), in
    each lowering. Drop when it reads constants where they are and is told their hashes.
    """
    import torch
    from executorch.backends.xnnpack.operators import node_visitor
    from executorch.exir.emit import _emitter

    from lora_core_xnnpack.lowering.known import KnownBytes

    visitor = node_visitor.NodeVisitor
    copied, pack, describe = node_visitor.bytes, visitor.convert_to_qc4w, visitor.get_quant_params
    hashed = node_visitor.hashlib.sha256

    def as_bytes(data: Any) -> Any:
        held = known.at(ctypes.addressof(data), ctypes.sizeof(data)) if isinstance(data, ctypes.Array) else None
        return copied(data) if held is None else held

    def sha256(data: Any) -> Any:
        return data.hash if isinstance(data, KnownBytes) else hashed(data)

    def packed(values: Any) -> Any:
        if known.bytes_of(values) is None:
            return pack(values)
        return known.made(values, "int4", pack).view(values.shape[0], -1)

    def described(self: Any, params: Any, *rest: Any, **named: Any) -> Any:
        if params.per_channel_group:  # converted there, and left as it is if it is of that type
            params = copy.copy(params)
            params.scale = known.made(params.scale, "bfloat16", lambda scale: scale.to(torch.bfloat16))
        return describe(self, params, *rest, **named)

    hashing = SimpleNamespace(sha256=sha256)
    for module in (node_visitor, _emitter):
        patches.replace(module, "bytes", as_bytes)
        patches.replace(module, "hashlib", hashing)
    patches.replace(visitor, "convert_to_qc4w", staticmethod(packed))
    patches.replace(visitor, "get_quant_params", described)
