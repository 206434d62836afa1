"""Programs with a method for each adapter made by hand: a template of slot plans, and what is linked from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from lora_core_xnnpack.files.program import PackedMethod, ProgramParts
from lora_core_xnnpack.files.program_root import SegmentOffsets
from lora_core_xnnpack.files.repacking import PlanSource
from lora_core_xnnpack.files.schema import PLAN, REFERENCE
from lora_core_xnnpack.files.tables import Table, Value, Vector
from lora_core_xnnpack.multimethod.relocations import MethodRelocations, MultimethodTemplate, Relocations
from lora_core_xnnpack.slot_tensors import KEY_LENGTH, KeySite, TensorRelocation
from synthetic import FOUNDATION, MARK

from lora_core.adapters.slots.plan import SlotPlan


def make_template(plans: Sequence[SlotPlan], *, seed: int, foundation_keys: Sequence[str] = ()) -> MultimethodTemplate:
    """Return a template with a method for the base, one for each of `plans`, and metadata; a delegate for each slot."""
    chance = np.random.default_rng(seed)
    fillers = chance.bytes(400)
    methods = {"forward": _method("forward", [fillers[:90], fillers[:70]], chance)}
    tables = []
    for number, plan in enumerate(plans):
        name = f"template_{number}"
        tensors: list[TensorRelocation] = []
        payloads = []
        for index, slot in enumerate(plan.slots):
            size = 16 + slot.in_features % 7 + slot.out_features % 5
            parts = slot.parts if chance.random() < 0.5 else slot.parts[::-1]
            payloads.append(b"".join(fillers[:size] + b"?" * KEY_LENGTH for _ in parts) + fillers[: 40 + number])
            for place, part in enumerate(parts):
                site = KeySite(payload=index, offset=(place + 1) * size + place * KEY_LENGTH)
                tensors.append(TensorRelocation(module=slot.module, part=part.name, shape=part.shape, sites=(site,)))
        order = chance.permutation(len(tensors))
        tables.append(MethodRelocations(method=name, tensors=tuple(tensors[index] for index in order)))
        methods[name] = _method(name, payloads, chance)
    metadata = {"get_max_seq_len": _method("get_max_seq_len", [], chance)}
    parts = ProgramParts(
        methods=metadata,
        named={},
        constants=(b"constants" * 9,),
        version=0,
        file_identifier=b"ET12",
        constant_segment=SegmentOffsets(segment=0, offsets=(0, 16)),
        mutable_segments=(SegmentOffsets(segment=0, offsets=()),) if seed % 3 == 0 else None,
    )
    program = b"".join(parts.assemble(methods, ()))
    table = Relocations(
        plans=tuple(tables),
        foundation_keys=tuple(sorted(foundation_keys)),
        mark=MARK if seed % 2 == 0 else None,  # older templates have none
    )
    return MultimethodTemplate(program=ProgramParts.parse(program), table=table)


def write_template(template: MultimethodTemplate, directory: Path) -> tuple[Path, Path]:
    """Write the two files of a template and return their paths."""
    program, table = directory / "model-template.pte", directory / "model-template.json"
    methods = {name: method for name, method in template.program.methods.items() if method.computes}
    program.write_bytes(b"".join(template.program.assemble(methods, ())))
    table.write_text(template.table.to_json(FOUNDATION), "utf-8")
    return program, table


def _method(name: str, payloads: Sequence[bytes], chance: np.random.Generator) -> PackedMethod:
    """Return a method whose plan has a table of every kind and a field of every type."""
    delegates: list[Table] = [
        Table(
            "BackendDelegate",
            (
                Vector(0, b"XnnpackBackend"),
                Table(REFERENCE, (b"\1", _whole(index + 1))),
                [Table("CompileSpec", (Vector(0, b"k" * index), Vector(1, bytes(index))))] if index else None,
            ),
        )
        for index in range(len(payloads))
    ]
    chains = [Table("Chain", (Vector(4, b""), Vector(4, bytes(4)), _instructions(bool(payloads)), None))]
    fields: Mapping[int, Value] = {
        0: Vector(0, name.encode()),
        1: Table("ContainerMetadata", (Vector(0, b""), Vector(0, bytes(chance.integers(97, 122, 5).astype(np.uint8))))),
        2: _values(chance),
        3: Vector(4, bytes(8)),
        4: Vector(4, bytes(4)),
        5: chains,
        6: [
            Table("Operator", (Vector(0, b"llama::sdpa"), Vector(0, b"out"))),
            Table("Operator", (Vector(0, b"x"), None)),
        ],
        7: delegates,
        8: Vector(8, bytes(8 * int(chance.integers(1, 4)))),
        9: [Table("NonConstBufferDevice", (_whole(1), b"\1", None))],
    }
    source = PlanSource(Table(PLAN, tuple(fields.get(index) for index in range(10))))
    return PackedMethod(source=source, payloads=tuple(payloads))


def _instructions(computes: bool) -> list[Table]:
    if not computes:
        return []
    calls = [
        (1, Table("KernelCall", (_whole(0), Vector(4, bytes(12))))),
        (2, Table("DelegateCall", (None, Vector(4, bytes(8))))),
        (3, Table("MoveCall", (_whole(1), _whole(2)))),
        (4, Table("JumpFalseCall", (_whole(1), None))),
        (5, Table("FreeCall", (_whole(3),))),
    ]
    return [Table("Instruction", (bytes([number]), call)) for number, call in calls]


def _values(chance: np.random.Generator) -> list[Table]:
    extra = Table("ExtraTensorInfo", (bytes(8), Vector(0, b"model.norm"), b"\1", None, b"\2"))
    allocation = Table("AllocationDetails", (_whole(1), _whole(int(chance.integers(1, 99))), None))
    tensor = Table(
        "Tensor",
        (b"\6", None, Vector(4, bytes(8)), Vector(1, b"\0\1"), None, _whole(4), allocation, b"\0", b"\1", extra),
    )
    kinds = {
        1: Table("Null", ()),
        2: Table("Int", (bytes(chance.bytes(8)),)),
        3: Table("Bool", (b"\1",)),
        4: Table("Double", (bytes(8),)),
        5: tensor,
        6: Table("String", (Vector(0, "größer".encode()),)),
        7: Table("IntList", (Vector(8, bytes(24)),)),
        8: Table("DoubleList", (Vector(8, bytes(8)),)),
        9: Table("BoolList", (Vector(1, b"\0\1\1"),)),
        10: Table("TensorList", (Vector(4, bytes(4)),)),
        11: Table("OptionalTensorList", (Vector(4, b""),)),
    }
    return [Table("EValue", (bytes([number]), table)) for number, table in kinds.items()]


def _whole(value: int) -> bytes:
    return value.to_bytes(4, "little")
