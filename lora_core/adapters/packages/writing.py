"""Write packages: the same adapter and key give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from lora_core.adapters.adapter import Adapter, Update
from lora_core.adapters.ordering import natural_key
from lora_core.adapters.packages.header import PackageHeader
from lora_core.adapters.packages.seal import SigningKey, placeholders, sealed
from lora_core.adapters.slots.kinds import extent_of, kind_of
from lora_core.tensors import LazyTensor, StoredTensor, narrow, stored_bytes

_ALIGNMENT = 8  # of the data, as the safetensors library writes it


@attrs.frozen(kw_only=True)
class Source:
    """What an adapter is packed for: fingerprint of the foundation, digests of template and slot plan; and `prompting`
    as in `PackageHeader`.
    """

    foundation: str
    template: str
    plan: str
    prompting: dict[str, str] = attrs.field(factory=dict)


def package_bytes(adapter: Adapter, source: Source, key: SigningKey | None = None) -> list[bytes]:
    """Return a package as parts to be written one after another; memory is that of the adapter in its own types."""
    header = PackageHeader(
        name=adapter.name,
        adapter=adapter.digest,
        base_model=adapter.base_model,
        scalings={(update.module, update.kind): update.scaling for update in adapter.updates},
        **attrs.asdict(source),
    )
    fields = {**header.to_metadata(), **placeholders(None if key is None else key.public)}
    tensors = sorted(_tensors(adapter.updates), key=lambda each: -_width(each[1]))
    data = _data([tensor for _, tensor in tensors])
    return [sealed(_head(fields, tensors, data), data, key), *data]


def _tensors(updates: Sequence[Update]) -> Iterator[tuple[str, LazyTensor]]:
    for update in sorted(updates, key=lambda each: (natural_key(each.module), each.kind)):
        for part in kind_of(update.kind).parts(extent_of(update)):
            yield f"{update.module}/{update.kind}/{part.name}", update.tensors[part.name]


def _data(tensors: Sequence[LazyTensor]) -> list[bytes]:
    """Return the bytes of each in its type: as they are stored, where they are not computed."""
    stored = [tensor for tensor in tensors if isinstance(tensor, StoredTensor)]
    known = {id(tensor): data for tensor, data in zip(stored, stored_bytes(stored), strict=True)}
    return [known.get(id(each)) or narrow(each.read(), each.dtype).tobytes() for each in tensors]


def _width(tensor: LazyTensor) -> int:
    return 4 if tensor.dtype == "F32" else 2


def _head(fields: dict[str, str], tensors: Sequence[tuple[str, LazyTensor]], data: Sequence[bytes]) -> bytes:
    ends = np.cumsum([len(each) for each in data]).tolist()
    document = {"__metadata__": dict(sorted(fields.items()))} | {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end - len(raw), end]}
        for (name, tensor), raw, end in zip(tensors, data, ends, strict=True)
    }
    # By hand and not with the library: it writes metadata in an order that differs from one run to the next.
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
