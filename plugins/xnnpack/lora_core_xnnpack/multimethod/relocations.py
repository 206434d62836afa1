"""The relocation table of a template with several methods: where each LoRA tensor's key stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from lora_core_xnnpack import slot_tensors
from lora_core_xnnpack.files.program import PackedMethod, ProgramParts
from lora_core_xnnpack.slot_tensors import TensorRelocation, schema_version


@attrs.frozen(kw_only=True)
class MethodRelocations:
    """The template method of a slot plan.

    `tensors` stand in the order in which ExecuTorch stores them; their sites count payloads as the plan its delegates.
    """

    method: str
    tensors: tuple[TensorRelocation, ...]


@attrs.frozen(kw_only=True)
class Relocations:
    """The table: a method for each slot plan, and the foundation's content keys that a LoRA matrix could also have.

    `mark` is what programs carry of the foundation (`files/marks.py`).
    """

    plans: tuple[MethodRelocations, ...]
    foundation_keys: tuple[str, ...]
    mark: str | None = None

    def to_json(self, foundation: str | None = None) -> str:
        """Return the table as JSON text with the same bytes for the same table.

        `foundation` is the fingerprint of the foundation that the template goes with; one without weights has none.
        """
        tensors = [tensor for plan in self.plans for tensor in plan.tensors]
        document = {
            "schema_version": schema_version(tensors),
            "layout": "multimethod",
            "plans": [
                {"method": plan.method, "tensors": [tensor.to_json() for tensor in plan.tensors]} for plan in self.plans
            ],
            "foundation_keys": self.foundation_keys,
        }
        if self.mark is not None:
            document["mark"] = self.mark
        if foundation is not None:
            document["foundation"] = foundation
        return json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n"


@attrs.frozen(kw_only=True)
class MultimethodTemplate:
    """A template opened for linking."""

    program: ProgramParts
    table: Relocations

    @classmethod
    def read(cls, program: Path, table: Path, foundation: str | None = None) -> MultimethodTemplate:
        """Read both files; raises `BundleError` naming the one that is damaged, or made for another `foundation`."""
        parts = ProgramParts.read(program)
        return cls(program=parts, table=_read(table, parts, foundation))

    def method(self, plan: int) -> PackedMethod:
        """Return the template method of a slot plan."""
        return self.program.methods[self.table.plans[plan].method]


def _read(path: Path, program: ProgramParts, foundation: str | None) -> Relocations:
    return slot_tensors.read_table(path, lambda document: _table(document, program), foundation=foundation)


def _table(document: dict[str, Any], program: ProgramParts) -> Relocations:
    table = Relocations(
        plans=tuple(_plan(plan) for plan in document["plans"]),
        foundation_keys=tuple(document["foundation_keys"]),
        mark=slot_tensors.recorded_mark(document),
    )
    for plan in table.plans:
        payloads = program.methods[plan.method].payloads
        for tensor, site in ((each, site) for each in plan.tensors for site in each.sites):
            if site.offset + tensor.key_length > len(payloads[site.payload]):
                raise ValueError("a key ends behind the end of its payload")
    return table


def _plan(document: dict[str, Any]) -> MethodRelocations:
    tensors = tuple(TensorRelocation.from_json(tensor) for tensor in document["tensors"])
    return MethodRelocations(method=document["method"], tensors=tensors)
