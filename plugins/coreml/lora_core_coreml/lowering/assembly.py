"""Lowered methods become one program object: equal constants merged byte for byte, slots turned into relocations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.errors import Problem, UnsupportedError
from lora_core.pte import aligned
from lora_core_coreml.lowering.constants import Constant, ConstantData, LoweredPackage
from lora_core_coreml.lowering.method import LoweredMethod
from lora_core_coreml.lowering.program import LoweredProgram, Methods
from lora_core_coreml.program.compaction import compact
from lora_core_coreml.program.naming import Kind
from lora_core_coreml.program.object import (
    EmbeddedConstant,
    Function,
    MethodObject,
    PartitionFoundation,
    ProgramObject,
    Relocation,
    SlotPart,
)
from lora_core_coreml.storage import blobfile, mil, pte
from lora_core_coreml.storage.blobfile import BlobKey, MilBlob
from lora_core_coreml.storage.messages import FunctionDescription, MilFunction, MilModel

# Constants that only a template has are zero biases of its LoRA layers; anything larger means that the base differs.
_EMBEDDED_LIMIT = 1 << 16
# An adapter's method takes and returns the structure of the base's, which says so once: 9 KB at 30 layers, which only
# Python tools read.
_SAME_AS_BASE = {"encoded_inp_str": "", "encoded_out_str": ""}
# Offsets from here on stand for blobs that have no place in the blob file yet.
_UNPLACED = 1 << 62
# Of tensors within the constant segment (the default of `serialize_pte_binary` in ExecuTorch 1.5.1).
_CONSTANT_ALIGNMENT = 16


def assemble(program: LoweredProgram, slot_plans: Sequence[SlotPlan], directory: Path) -> ProgramObject:
    """Assemble a program object, whose templates are those of `slot_plans`; the foundation's bytes are written under
    `directory`, and functions are changed in place.

    Raises `UnsupportedError` if partitions do not align or a slot got lost.
    """
    methods, templates = program.methods, program.templates
    check_alignment(program.everything)
    constants = _Constants()
    plans = {id(lowered): constants.adopt(lowered.plan, lowered) for lowered in program.everything}
    for template in templates:
        for _, lowered in template:
            plans[id(lowered)]["container_meta_type"] = dict(_SAME_AS_BASE)
    others = tuple(constants.adopt(plan, lowered) for _, lowered in methods for plan in lowered.others)

    functions: dict[int, list[Function]] = {id(lowered): [] for lowered in program.everything}
    foundations = []
    for index in range(len(methods[0][1].packages)):
        merger = _Merger(directory / f"foundation_{index}.bin")
        for _, lowered in methods:
            functions[id(lowered)].append(merger.add_base(lowered.packages[index]))
        foundations.append(merger.finish())
        for template in templates:
            for _, lowered in template:
                functions[id(lowered)].append(merger.add_template(lowered, index))
    _check_slots(templates, slot_plans, functions)

    def method(kind: Kind, lowered: LoweredMethod) -> MethodObject:
        return MethodObject(kind=kind, plan=plans[id(lowered)], functions=tuple(functions[id(lowered)]))

    return ProgramObject(
        methods=tuple(method(*entry) for entry in methods),
        templates=tuple(tuple(method(*entry) for entry in template) for template in templates),
        foundations=tuple(foundations),
        constants=others,
        constant_offsets=constants.offsets,
        constant_data=constants.data,
    )


def check_alignment(methods: Sequence[LoweredMethod]) -> None:
    """Raise `UnsupportedError` naming method and operator if methods are not partitioned alike.

    Weights are shared by position: partition i of every method is one package.
    """
    first = methods[0]
    problems = []
    for method in methods[1:]:
        if len(method.packages) == len(first.packages):
            continue
        ours, theirs = (_delegated(m) for m in (method, first))
        lost = sorted(theirs - ours) or sorted(ours - theirs) or ["none by name: the graph is cut elsewhere"]
        what = (
            f"Method {method.name!r} has {len(method.packages)} CoreML partitions and {first.name!r} has "
            f"{len(first.packages)}, so their weights cannot be shared by position; operators delegated in one and not "
            f"in the other: {', '.join(lost)}"
        )
        problems.append(Problem(what=what, where=method.name, remedy="Export without --graph-breaks."))
    if problems:
        raise UnsupportedError(problems)


def _delegated(method: LoweredMethod) -> set[str]:
    return {operator for partition in method.operators for operator in partition}


class _Merger:
    """Collects one partition's constants into a foundation file, equal bytes once, and rewrites references to them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._file.write(blobfile.header(0))
        self._end = blobfile.ALIGNMENT
        self._digest = hashlib.sha256()
        self._blobs: list[MilBlob] = []
        self._offsets: dict[BlobKey, int] = {}
        self._shell: MilModel | None = None

    def add_base(self, package: LoweredPackage) -> Function:
        if self._shell is None:
            self._shell = _shell(package.model)
        function = package.function
        for constant, (_, value) in zip(package.constants, mil.blob_references(function), strict=True):
            value.offset = self._place(constant.data)
        compact(function, keep_weight_names=True)
        return Function(message=function, description=_description(package.model))

    def finish(self) -> PartitionFoundation:
        assert self._shell is not None, "the base has a method"
        self._file.close()
        return PartitionFoundation(
            path=self._path,
            start=0,
            size=self._end,
            blobs=tuple(self._blobs),
            sha256=self._digest.hexdigest(),
            shell=self._shell,
        )

    def add_template(self, lowered: LoweredMethod, index: int) -> Function:
        package = lowered.packages[index]
        function = package.function
        own: dict[BlobKey | SlotPart, Constant] = {}
        for constant, (_, value) in zip(package.constants, mil.blob_references(function), strict=True):
            if constant.key in self._offsets and constant.slot is None:
                value.offset = self._offsets[constant.key]
            elif constant.slot is not None or constant.key.size <= _EMBEDDED_LIMIT:
                # Where it will be stored is not known; until its reference has a number, its place here names it.
                identity = constant.slot or constant.key
                own.setdefault(identity, constant)
                value.offset = _UNPLACED + list(own).index(identity)
            else:
                raise UnsupportedError(
                    f"Constant {constant.name!r} of method {lowered.name!r} is not stored in the base's methods: "
                    "attaching LoRA changed how CoreML lowers the base",
                    where=lowered.name,
                )
        compact(function, keep_weight_names=False)
        relocations, embedded = _own_references(function, tuple(own.values()))
        description = _description(package.model)
        return Function(message=function, description=description, relocations=relocations, embedded=embedded)

    def _place(self, data: ConstantData) -> int:
        """Return where `data` is stored; bytes that are not known yet are written, and cut off again if another
        constant has the same.
        """
        if data.read_key is None or data.read_key not in self._offsets:
            before = self._digest.copy()
            blob = self._append(data)
            if data.key in self._offsets:
                self._digest = before
                self._file.seek(self._end)
                self._file.truncate()
            else:
                self._offsets[data.key] = blob.offset
                self._blobs.append(blob)
                self._end = blob.next_offset
        return self._offsets[data.key]

    def _append(self, data: ConstantData) -> MilBlob:
        blob = MilBlob(
            offset=self._end,
            dtype=data.dtype,
            data_offset=self._end + blobfile.ALIGNMENT,
            size=data.size,
            padding_bits=data.padding_bits,
        )
        for piece in chain([blobfile.record(blob)], data.read(), [bytes(blob.next_offset - blob.end)]):
            self._digest.update(piece)
            self._file.write(piece)
        return blob


def _own_references(
    function: MilFunction, own: Sequence[Constant]
) -> tuple[tuple[Relocation, ...], tuple[EmbeddedConstant, ...]]:
    """Number the references of a template's function to what the base does not store, and clear their offsets."""
    relocations, embedded = [], []
    for number, (_, value) in enumerate(mil.blob_references(function)):
        if value.offset < _UNPLACED:
            continue
        constant = own[value.offset - _UNPLACED]
        value.offset = 0
        if constant.slot is not None:
            relocations.append(Relocation(reference=number, target=constant.slot))
        else:
            embedded.append(EmbeddedConstant(reference=number, key=constant.key, data=bytes(constant.read())))
    return tuple(relocations), tuple(embedded)


class _Constants:
    """The program's constant segment: tensors of all methods, equal bytes once. Number 0 belongs to no tensor."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._buffers: list[bytes] = [b""]

    def adopt(self, plan: pte.Program, lowered: LoweredMethod) -> pte.Program:
        """Return `plan` with its tensors, which are buffers of `lowered`, numbered as here."""
        copy = {key: self._value(item, lowered) for key, item in plan.items()}
        if plan.get("data_buffer_idx"):
            copy["data_buffer_idx"] = self._number(lowered.buffers[plan["data_buffer_idx"]])
        return copy

    def _value(self, value: object, lowered: LoweredMethod) -> object:
        if isinstance(value, list):
            return [self._value(item, lowered) for item in value]
        return self.adopt(value, lowered) if isinstance(value, dict) else value

    def _number(self, data: bytes) -> int:
        if data not in self._numbers:
            self._numbers[data] = len(self._buffers)
            self._buffers.append(data)
        return self._numbers[data]

    @property
    def offsets(self) -> tuple[int, ...]:
        offsets, position = [], 0
        for buffer in self._buffers:
            offsets.append(position)
            position += aligned(len(buffer), _CONSTANT_ALIGNMENT)
        return tuple(offsets) if len(offsets) > 1 else ()

    @property
    def data(self) -> bytes:
        return b"".join(buffer.ljust(aligned(len(buffer), _CONSTANT_ALIGNMENT), b"\0") for buffer in self._buffers)


def _check_slots(
    templates: Sequence[Methods],
    slot_plans: Sequence[SlotPlan],
    functions: dict[int, list[Function]],
) -> None:
    """Raise `UnsupportedError` for slots whose parts are not found in a lowered template."""
    problems = []
    for template, plan in zip(templates, slot_plans, strict=True):
        wanted = [SlotPart(module=slot.module, part=part.name) for slot in plan.slots for part in slot.parts]
        for _, lowered in template:
            found = {r.target for function in functions[id(lowered)] for r in function.relocations}
            for part in [part for part in wanted if part not in found]:
                what = f"{part} was not found in lowered method {lowered.name!r}"
                remedy = "It must stay a constant of at least ten values in the lowered program."
                problems.append(Problem(what=what, where=part.module, remedy=remedy))
    if problems:
        raise UnsupportedError(problems)


def _shell(model: MilModel) -> MilModel:
    """Return a model with versions and build information only; the conversion date is left out on purpose."""
    shell = mil.new_model()
    shell.specificationVersion = model.specificationVersion
    shell.mlProgram.version = model.mlProgram.version
    for name, value in model.mlProgram.attributes.items():
        shell.mlProgram.attributes[name].CopyFrom(value)
    for name, text in model.description.metadata.userDefined.items():
        if not name.endswith("conversion_date"):
            shell.description.metadata.userDefined[name] = text
    return shell


def _description(model: MilModel) -> FunctionDescription:
    """Return the single function's inputs and outputs as the description of one function of several."""
    description = mil.new_model().description.functions.add()
    for field in ("input", "output", "state"):
        getattr(description, field).extend(getattr(model.description, field))
    return description
