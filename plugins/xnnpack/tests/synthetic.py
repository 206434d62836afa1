"""Templates and adapters made by hand: real formats, no lowering, so that many of them take no time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
from lora_core_xnnpack.files.program_front import ProgramTail, assemble
from lora_core_xnnpack.files.program_root import ProgramRoot, SegmentOffsets
from lora_core_xnnpack.files.schema import PLAN, REFERENCE
from lora_core_xnnpack.files.tables import Packer, Table, Vector
from lora_core_xnnpack.files.writer import Writer
from lora_core_xnnpack.slot_tensors import KEY_LENGTH, KeySite, TensorRelocation
from lora_core_xnnpack.split.relocations import DelegateReference, RelocationTable, SplitTemplate, TemplateSegment

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.tensors import narrow

FOUNDATION, MARK = "f0" * 32, "ab" * 32
Array = npt.NDArray[np.float32]


def summary_of(plan: SlotPlan) -> ModelSummary:
    """Return a base whose layers are those of the plan."""
    layers = tuple(
        LayerInfo(name=slot.module, kind="linear", in_features=slot.in_features, out_features=slot.out_features)
        for slot in plan.slots
    )
    names = tuple(slot.module for slot in plan.slots)
    return ModelSummary(name="synthetic", family="llama", layers=layers, module_names=names)


def plan_of(shapes: Mapping[str, tuple[int, int, int]]) -> SlotPlan:
    """Return a plan with slots of (rank, in_features, out_features) by module."""
    return SlotPlan(
        slots=tuple(
            Slot(module=module, rank=rank, in_features=rows, out_features=columns)
            for module, (rank, rows, columns) in shapes.items()
        )
    )


def make_template(plan: SlotPlan, *, seed: int, foundation_keys: Sequence[str] = ()) -> SplitTemplate:
    """Return a template with a delegate for each slot; those of slots of one shape differ in their keys alone."""
    chance = np.random.default_rng(seed)
    fillers = chance.bytes(400)
    tensors, payloads = [], []
    for index, slot in enumerate(plan.slots):
        size = 16 + slot.in_features % 7 + slot.out_features % 5
        parts = slot.parts if chance.random() < 0.5 else slot.parts[::-1]
        keys = b"".join(fillers[:size] + b"?" * KEY_LENGTH for _ in parts)
        payloads.append(keys + fillers[:40])
        tensors += [
            TensorRelocation(
                module=slot.module,
                part=part.name,
                shape=part.shape,
                sites=(KeySite(payload=index + 1, offset=(place + 1) * size + place * KEY_LENGTH),),
            )
            for place, part in enumerate(parts)
        ]
    order = chance.permutation(len(tensors))
    tail, positions = _tail([index + 1 for index in range(len(payloads))])
    program = b"".join(assemble(tail, [b"constants" * 9, *payloads], ()))
    root = ProgramRoot.read(program)
    start = root.header.program_size - len(tail.data)
    return SplitTemplate(
        program=program,
        table=RelocationTable(
            tail_offset=start,
            tail_size=len(tail.data),
            tail=attrs.evolve(tail, data=program[start : root.header.program_size]),
            segments=tuple(TemplateSegment(offset=offset, size=size) for offset, size in root.spans),
            delegates=tuple(
                DelegateReference(position=position, segment=index + 1) for index, position in enumerate(positions)
            ),
            tensors=tuple(tensors[index] for index in order),
            foundation_keys=tuple(sorted(foundation_keys)),
            mark=MARK if seed % 2 == 0 else None,  # older templates have none
        ),
    )


def _tail(segments: Sequence[int]) -> tuple[ProgramTail, list[int]]:
    """Return a tail with one plan that has a delegate for each of `segments`, and where their numbers stand in it."""
    writer = Writer()
    packer = Packer(writer)
    delegates = [
        Table(
            "BackendDelegate",
            (Vector(0, b"XnnpackBackend"), Table(REFERENCE, (b"\1", index.to_bytes(4, "little"))), None),
        )
        for index in segments
    ]
    fields = (
        Vector(0, b"forward"),
        None,
        None,
        Vector(4, b"\0" * 8),
        None,
        None,
        None,
        delegates,
        Vector(8, b"\0" * 16),
    )
    plan = packer.pack(Table(PLAN, (*fields, None)))
    vectors = (writer.offsets([plan]), writer.offsets(()), writer.offsets(()))
    data = writer.data()
    tail = ProgramTail(
        data=data,
        min_align=max(writer.min_align, 8),
        vectors=vectors,
        vtables=tuple(writer.vtables.items()),
        version=0,
        header_length=32,
        file_identifier=b"ET12",
        constant_segment=SegmentOffsets(segment=0, offsets=(0, 16)),
        mutable_segments=None,
    )
    return tail, [len(data) - offset for offset in packer.references]


def write_template(template: SplitTemplate, directory: Path) -> tuple[Path, Path]:
    """Write the two files of a template and return their paths."""
    program, table = directory / "0.pte", directory / "0.json"
    program.write_bytes(template.program)
    table.write_text(template.table.to_json(FOUNDATION), "utf-8")
    return program, table


def write_peft(
    directory: Path,
    matrices: Mapping[str, tuple[Array, Array]],
    *,
    dtype: str = "F32",
    alpha: float = 8.0,
    use_rslora: bool = False,
) -> Path:
    """Write matrices (A, B) by module as PEFT does, rounded to `dtype`; all of the rank of the first."""
    directory.mkdir(parents=True, exist_ok=True)
    header: dict[str, object] = {}
    data = b""
    for module, pair in matrices.items():
        for side, array in zip("AB", pair, strict=True):
            raw = narrow(np.ascontiguousarray(array, np.float32), dtype).tobytes()
            entry = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
            header[f"base_model.model.{module}.lora_{side}.weight"] = entry
            data += raw
    head = json.dumps(header).encode()  # by hand: the library takes no bfloat16 from numpy
    (directory / "adapter_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
    rank = next(iter(matrices.values()))[0].shape[0]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": sorted(matrices), "bias": "none"}
    config |= {"use_rslora": True} if use_rslora else {}
    (directory / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return directory
