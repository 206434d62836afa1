"""The tensors that fill a program's slots and where their keys stand, as both layouts' relocation tables say it.

ExecuTorch 1.5.1 stores an XNNPACK constant under the SHA-256 hex of its bytes (`backends/xnnpack/operators/
node_visitor.py`); the delegate's payload holds that key as 64 plain characters. Replacing the keys of the template's
placeholder tensors by those of an adapter's tensors gives the program of that adapter. What portable kernels read (the
rows of an embedding) lies in the program itself, at the same place in every program of the template.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.adapters.adapter import LOW_RANK
from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.kinds import Values
from lora_core.errors import BundleError, LoraCoreError
from lora_core.intake.limits import TABLE
from lora_core.intake.parsing import UNREADABLE
from lora_core.intake.plain_json import read_json
from lora_core.pte import Buffer
from lora_core_xnnpack.adapter_dtype import SCALE, as_stored
from lora_core_xnnpack.files.data_file import DataBlob

KEY_LENGTH = 64
SCHEMA_VERSION = 4
"""Of both layouts' relocation tables; 1 had A and B under the name `matrix`, 3 had nothing in float16."""
_PLAIN_VERSION = 2
"""What a table says in which nothing is int8 or inside of programs: older versions know the rest."""
_WITHOUT_HALF = 3
"""What one says in which nothing is float16."""
DTYPES = {"float32": 4, "float16": 2, "int8": 1}
"""The types of stored tensors, as NumPy calls them, with their bytes."""
LOW_RANK_PARTS = frozenset(("a", "b"))
Table = TypeVar("Table")


@attrs.frozen(kw_only=True)
class KeySite:
    """Where a key stands: `offset` in a delegate's payload; each layout says how it counts payloads."""

    payload: int
    offset: int


@attrs.frozen(kw_only=True)
class TensorRelocation:
    """One part of a slot of `module`: of type `dtype`, row-major, of `shape`.

    Its content key stands at `sites`; of a part that lies `inside` the program, its bytes.
    """

    module: str
    part: str
    shape: tuple[int, ...]
    sites: tuple[KeySite, ...]
    dtype: str = "float32"
    inside: bool = False

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return DTYPES[self.dtype] * math.prod(self.shape)

    @property
    def source(self) -> str:
        """The slot's part that it is made of: scales are those of another."""
        return self.part.removesuffix(SCALE)

    @property
    def key_length(self) -> int:
        """Characters of its content key."""
        return KEY_LENGTH + len(_prefix(self.part))

    @property
    def length(self) -> int:
        """Bytes of what stands at each of its sites."""
        return self.size if self.inside else self.key_length

    def blob(self, values: Mapping[str, Values]) -> DataBlob:
        """Return the tensor of `values` (by module and part) as ExecuTorch stores it, under its content key."""
        array = as_stored(values[self.module][self.source], self.part, self.dtype)
        if array.shape != self.shape:
            raise ValueError(f"{self.module} {self.part} is {array.shape}, the template has {self.shape}")
        return tensor_blob(array, self.part)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without what is as in the versions before there was anything else."""
        document = attrs.asdict(self)
        plain = attrs.fields(TensorRelocation)
        return {key: value for key, value in document.items() if value != getattr(plain, key).default}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> TensorRelocation:
        """Read what `attrs.asdict` gave."""
        sites = tuple(
            KeySite(payload=whole(site["payload"]), offset=whole(site["offset"])) for site in document["sites"]
        )
        shape = tuple(map(whole, document["shape"]))
        module, part, dtype = document["module"], document["part"], document.get("dtype", "float32")
        if not isinstance(module, str) or not isinstance(part, str):
            raise ValueError(f"{module!r:.60} and {part!r:.60} are no names")
        if dtype not in DTYPES:
            raise ValueError(f"{dtype!r:.60} is no type of tensors here")
        inside = document.get("inside") is True
        return cls(module=module, part=part, shape=shape, sites=sites, dtype=dtype, inside=inside)


def whole(value: object) -> int:
    """Return a number of a table; raises `ValueError` if it is no whole number, or a negative one."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.60} is no whole number")
    return value


def tensor_blob(array: npt.NDArray[Any], part: str = "") -> DataBlob:
    """Return the tensor of a `part` of a slot as ExecuTorch stores it, under the key that it gives it."""
    stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    blob = DataBlob.under_content_key(stored.data.cast("B"))
    return attrs.evolve(blob, key=_prefix(part) + blob.key)


def _prefix(part: str) -> str:
    # ExecuTorch 1.5.1, `NodeVisitor.get_quant_params`.
    return "scale_" if part.endswith(SCALE) else ""


def schema_version(tensors: Iterable[TensorRelocation]) -> int:
    """Return the version that a table of `tensors` says: the first that knows all of it."""
    kinds = {(each.dtype, each.inside) for each in tensors}
    if any(dtype == "float16" for dtype, _ in kinds):
        return SCHEMA_VERSION
    return _PLAIN_VERSION if kinds <= {("float32", False)} else _WITHOUT_HALF


def linkable_values(adapter: PlacedAdapter) -> dict[str, Values]:
    """Return the values of every slot of the adapter's plan by module.

    A low-rank slot without effect (untargeted, or A is zero) has a zero B and a constant A, whose value only its shape
    decides.
    """
    values = adapter.values_by_module()
    for slot in adapter.plan.slots:
        parts = values[slot.module]
        if slot.kind == LOW_RANK and not parts["a"].any():
            # XNNPACK's weight cache (ExecuTorch 1.5.1) finds packed weights by their bytes and a seed that is symmetric
            # in rows and columns, so it takes a zero A (rank, n) for a zero B (n, rank) and reads past its end. Drop
            # when it does not.
            a, b = _idle(slot.rank, slot.in_features, slot.out_features)
            values[slot.module] = {**parts, "a": a, "b": b}
    return values


def without_idle_constants(values: Mapping[str, Values]) -> dict[str, Values]:
    """Return what `linkable_values` gave with zeros in place of the constants that it wrote into idle slots."""
    restored = {}
    for module, parts in values.items():
        restored[module] = parts
        if parts.keys() >= LOW_RANK_PARTS and not parts["b"].any():
            a, b = parts["a"], parts["b"]
            if np.array_equal(a, _idle(a.shape[0], a.shape[1], b.shape[0])[0]):
                restored[module] = {**parts, "a": np.zeros_like(a)}
    return restored


@lru_cache(maxsize=256)
def _idle(rank: int, in_features: int, out_features: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    a = np.full((rank, in_features), (rank << 16 | in_features) * 2.0**-32, dtype=np.float32)
    return a, np.zeros((out_features, rank), dtype=np.float32)


def find_sites(payloads: Mapping[int, Buffer], key: str) -> tuple[KeySite, ...]:
    """Return where `key` stands in `payloads`, delegates' payloads by their number."""
    return tuple(
        KeySite(payload=number, offset=offset)
        for number, payload in payloads.items()
        for offset in occurrences(bytes(payload), key.encode("ascii"))
    )


def not_stored(names: Iterable[str]) -> LoraCoreError:
    """Return the error for parts of slots that a lowered program does not hold as XNNPACK constants."""
    return LoraCoreError(
        f"ExecuTorch did not store these tensors of slots as XNNPACK constants: {', '.join(sorted(names))}.",
        remedy="Their layers are not delegated to XNNPACK; leave them out of the targets.",
    )


def occurrences(payload: bytes, text: bytes) -> Iterator[int]:
    """Yield every offset at which `text` stands in `payload`."""
    position = payload.find(text)
    while position >= 0:
        yield position
        position = payload.find(text, position + 1)


def recorded_mark(document: Mapping[str, Any]) -> str | None:
    """Return the mark in a relocation table's document; raises `ValueError` if it is none. Older tables have none."""
    mark = document.get("mark")
    if mark is not None and (not isinstance(mark, str) or len(mark) != KEY_LENGTH or not mark.isascii()):
        raise ValueError("its mark is none")
    return mark


def read_table(path: Path, build: Callable[[dict[str, Any]], Table], *, foundation: str | None = None) -> Table:
    """Read the relocation table at `path` with `build`.

    Raises `BundleError` naming the file if it is of another schema, is no table, `build` refuses its content, or it is
    not for the foundation with the fingerprint `foundation` (None: it need not say).
    """
    try:
        document = read_json(path, TABLE, BundleError, links=False, remedy="Export the bundle again.")
        version = document["schema_version"]
        if version not in range(_PLAIN_VERSION, SCHEMA_VERSION + 1):
            raise BundleError(
                f"Relocation table {path.name} has schema {version}; this version reads {_PLAIN_VERSION} to "
                f"{SCHEMA_VERSION}.",
                where=str(path),
                remedy="Update lora-core-xnnpack." if version > SCHEMA_VERSION else "Export the bundle again.",
            )
        if foundation is not None and document["foundation"] != foundation:
            raise BundleError(
                f"Template {path.name} was made for foundation {document['foundation']}, the bundle's is {foundation}.",
                where=str(path),
                remedy="Restore the files that were exported, or export the bundle again.",
            )
        return build(document)
    except (OSError, *UNREADABLE) as error:
        raise BundleError(
            f"Relocation table {path.name} is damaged: {type(error).__name__}: {error}.",
            where=str(path),
            remedy="Export the bundle again.",
        ) from error
