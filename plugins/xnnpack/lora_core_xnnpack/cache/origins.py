"""The foundation without its weights: where each blob's bytes come from, and so what another base stores."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.pte import Buffer
from lora_core_xnnpack.cache.forms import Form, forms_by_digest, same_storage
from lora_core_xnnpack.files.named_blobs import NamedBlob, TensorLayout, string_bytes
from lora_core_xnnpack.slot_tensors import occurrences

if TYPE_CHECKING:
    import torch

    from lora_core_xnnpack.lowering.known import KnownTensors

_CONTENT_KEY = re.compile(r"(scale_)?[0-9a-f]{64}")


class DependsOnWeightsError(Exception):
    """Lowered programs cannot be told apart from their weights; the text says what and why."""


@attrs.frozen(kw_only=True)
class BaseTensor:
    """One blob of the foundation: where its `size` bytes come from, and its key.

    `name` is the key if it is a name, `prefix` stands before a content key (then `name` is empty).
    """

    form: Form
    name: str
    prefix: str
    size: int
    layout: TensorLayout | None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> BaseTensor:
        """Read what `attrs.asdict` gave."""
        layout = document["layout"]
        return cls(
            form=Form(**document["form"]),
            name=document["name"],
            prefix=document["prefix"],
            size=document["size"],
            layout=None
            if layout is None
            else TensorLayout(
                scalar_type=layout["scalar_type"], sizes=tuple(layout["sizes"]), dim_order=tuple(layout["dim_order"])
            ),
        )


def trace_foundation(
    module: torch.nn.Module, blobs: Sequence[NamedBlob], digests: Sequence[str], held: KnownTensors | None = None
) -> tuple[BaseTensor, ...]:
    """Trace every blob of a foundation file, whose bytes have the SHA-256 in `digests`, to a tensor of `module`.

    What is `held` of the module's tensors is not hashed again.

    Raises `DependsOnWeightsError` if a blob is no stored form of a tensor, or of several that are equal by chance.
    """
    known = forms_by_digest(module, {blob.size for blob in blobs}, held)
    keys = {blob.key for blob in blobs}
    # What kernels read by name is not delegated: a delegated tensor that equals it (a tied head) is the other one.
    delegated = {digest: [form for form in found if form.path not in keys] or found for digest, found in known.items()}
    return tuple(
        _trace(module, blob, (delegated if is_content_key(blob.key) else known).get(digest, []))
        for blob, digest in zip(blobs, digests, strict=True)
    )


def digests_of(data: Buffer, blobs: Sequence[NamedBlob]) -> list[str]:
    """Return the SHA-256 of each blob of a file whose bytes are `data`."""
    view = memoryview(data)
    return [hashlib.sha256(view[blob.offset : blob.offset + blob.size]).hexdigest() for blob in blobs]


def is_content_key(key: str) -> bool:
    """Say whether a key is made of its tensor's bytes, and not a name."""
    return _CONTENT_KEY.fullmatch(key) is not None


def key_offsets(payload: bytes, key: str) -> Iterator[int]:
    """Yield where `key` stands in a delegate's payload as a whole flatbuffer string: it may also end a longer key."""
    yield from (offset + 4 for offset in occurrences(payload, string_bytes(key.encode("ascii"))))


def _trace(module: torch.nn.Module, blob: NamedBlob, candidates: Sequence[Form]) -> BaseTensor:
    content = _CONTENT_KEY.fullmatch(blob.key)
    if not content:
        candidates = [form for form in candidates if form.path == blob.key] or candidates
    if not candidates:
        raise DependsOnWeightsError(f"{blob.key} is no stored form of a weight")
    first = candidates[0]
    if any(not same_storage(module, first, other) for other in candidates[1:]):
        paths = ", ".join(sorted({form.path for form in candidates}))
        raise DependsOnWeightsError(f"these weights are equal, so they cannot be told apart: {paths}")
    prefix = content.group(1) or "" if content else ""
    name = "" if content else blob.key
    return BaseTensor(form=first, name=name, prefix=prefix, size=blob.size, layout=blob.layout)
