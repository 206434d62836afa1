"""The relocation table of a template with several methods: where each LoRA tensor's key stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import attrs

from lora_core.errors import BundleError
from lora_core_xnnpack.multimethod.program import PackedMethod, ProgramParts

SCHEMA_VERSION = 1
KEY_LENGTH = 64  # SHA-256 in hex, as ExecuTorch names XNNPACK constants


@attrs.frozen(kw_only=True)
class KeySite:
    """Where a key stands: `offset` in the payload of the plan's delegate `delegate`."""

    delegate: int
    offset: int


@attrs.frozen(kw_only=True)
class TensorRelocation:
    """One LoRA matrix: float32, row-major, `shape` (rank, in_features) for A, (out_features, rank) for B."""

    module: str
    matrix: Literal["a", "b"]
    shape: tuple[int, int]
    sites: tuple[KeySite, ...]


@attrs.frozen(kw_only=True)
class MethodRelocations:
    """The template method of a slot plan; `tensors` stand in the order in which ExecuTorch stores them."""

    method: str
    tensors: tuple[TensorRelocation, ...]


@attrs.frozen(kw_only=True)
class Relocations:
    """The table: a method for each slot plan, and the foundation's content keys that a LoRA matrix could also have."""

    plans: tuple[MethodRelocations, ...]
    foundation_keys: tuple[str, ...]

    def to_json(self) -> str:
        """Return the table as JSON text with the same bytes for the same table."""
        document = {"schema_version": SCHEMA_VERSION, "layout": "multimethod", **attrs.asdict(self)}
        return json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n"


@attrs.frozen(kw_only=True)
class Template:
    """A template opened for linking."""

    program: ProgramParts
    table: Relocations

    @classmethod
    def read(cls, program: Path, table: Path) -> Template:
        """Read both files; raises `BundleError` naming the one that is damaged."""
        parts = ProgramParts.read(program)
        return cls(program=parts, table=_read(table, parts))

    def method(self, plan: int) -> PackedMethod:
        """Return the template method of a slot plan."""
        return self.program.methods[self.table.plans[plan].method]


def _read(path: Path, program: ProgramParts) -> Relocations:
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["schema_version"] > SCHEMA_VERSION:
            raise BundleError(
                f"Relocation table {path.name} has schema {document['schema_version']}; this version reads up to "
                f"{SCHEMA_VERSION}.",
                where=str(path),
                remedy="Update lora-core-xnnpack.",
            )
        table = Relocations(
            plans=tuple(_plan(plan) for plan in document["plans"]), foundation_keys=tuple(document["foundation_keys"])
        )
        for plan in table.plans:
            payloads = program.methods[plan.method].payloads
            for site in (site for tensor in plan.tensors for site in tensor.sites):
                if site.offset + KEY_LENGTH > len(payloads[site.delegate]):
                    raise ValueError("a key ends behind the end of its payload")
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise BundleError(
            f"Relocation table {path.name} is damaged: {type(error).__name__}: {error}.",
            where=str(path),
            remedy="Export the bundle again.",
        ) from error
    return table


def _plan(document: dict[str, Any]) -> MethodRelocations:
    return MethodRelocations(
        method=document["method"], tensors=tuple(_tensor(tensor) for tensor in document["tensors"])
    )


def _tensor(document: dict[str, Any]) -> TensorRelocation:
    rows, columns = document["shape"]
    return TensorRelocation(
        module=document["module"],
        matrix=document["matrix"],
        shape=(rows, columns),
        sites=tuple(KeySite(**site) for site in document["sites"]),
    )
