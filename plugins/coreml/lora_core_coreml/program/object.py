"""A lowered program as an object: what a link needs besides the foundation's bytes.

A program is a set of methods. Each has an ExecuTorch execution plan and, for every partition, one CoreML function. The
functions of a template method carry relocations: references into the blob file that name a part of a slot instead of a
stored constant. All other references point into the foundation, the part of the blob file that no adapter changes.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import attrs

from lora_core_coreml.program.naming import Kind
from lora_core_coreml.storage.blobfile import BlobKey, MilBlob
from lora_core_coreml.storage.messages import FunctionDescription, MilFunction, MilModel
from lora_core_coreml.storage.mil import ReferencePlace, reference_places
from lora_core_coreml.storage.pte import Program


@attrs.frozen(kw_only=True)
class SlotPart:
    """One tensor of a slot: `part` of the slot's kind (`a` and `b` of a low-rank update), at layer `module`."""

    module: str
    part: str

    def __str__(self) -> str:
        """Return it as messages name it: `A of model.layers.0.self_attn.q_proj`."""
        return f"{self.part.upper()} of {self.module}"


@attrs.frozen(kw_only=True)
class Relocation:
    """The `reference`-th reference of a function into the blob file is to `target`."""

    reference: int
    target: SlotPart


@attrs.frozen(kw_only=True)
class EmbeddedConstant:
    """The `reference`-th reference is to a constant that the base does not have: a LoRA layer's zero bias."""

    reference: int
    key: BlobKey
    data: bytes


@attrs.frozen(kw_only=True)
class Function:
    """A CoreML function: its MIL protobuf, its description (inputs and outputs), and what a link must fill in."""

    message: MilFunction
    description: FunctionDescription
    relocations: tuple[Relocation, ...] = ()
    embedded: tuple[EmbeddedConstant, ...] = ()

    @cached_property
    def slot_places(self) -> tuple[tuple[SlotPart, ReferencePlace], ...]:
        """The parts of slots that it refers to, and where."""
        return tuple((each.target, self._places[each.reference]) for each in self.relocations)

    @cached_property
    def embedded_places(self) -> tuple[tuple[EmbeddedConstant, ReferencePlace], ...]:
        """The constants that the base does not have, and where it refers to them."""
        return tuple((each, self._places[each.reference]) for each in self.embedded)

    @cached_property
    def _places(self) -> tuple[ReferencePlace, ...]:
        return reference_places(self.message)


@attrs.frozen(kw_only=True)
class MethodObject:
    """A method: `plan` is an ExecuTorch execution plan whose delegates name partitions; one function a partition."""

    kind: Kind
    plan: Program
    functions: tuple[Function, ...]


@attrs.frozen(kw_only=True)
class PartitionFoundation:
    """The base's constants of one partition: bytes `start` to `start + size` of `path` are a blob file's first `size`.

    `sha256` covers those bytes without the file header, whose count changes with adapters. `shell` is a CoreML model
    without functions: versions and build information that every linked model carries.
    """

    path: Path
    start: int
    size: int
    blobs: tuple[MilBlob, ...]
    sha256: str
    shell: MilModel


@attrs.frozen(kw_only=True)
class ProgramObject:
    """Everything a program is made of except adapters.

    `methods` are the base's; `templates` has the methods of each slot plan, `called` methods that take adapters as
    inputs in their place, by name (`inputs.py`); `constants` are execution plans of constant methods;
    `constant_offsets` and `constant_data` are the program's constant segment.
    """

    methods: tuple[MethodObject, ...]
    templates: tuple[tuple[MethodObject, ...], ...]
    called: tuple[tuple[str, MethodObject], ...] = ()
    foundations: tuple[PartitionFoundation, ...]
    constants: tuple[Program, ...]
    constant_offsets: tuple[int, ...]
    constant_data: bytes
    version: int = 0

    @property
    def multifunction(self) -> bool:
        """True if there are decode and prefill methods."""
        return len(self.methods) > 1

    @property
    def constant_methods(self) -> frozenset[str]:
        """The names of the constant methods that come from the base."""
        return frozenset(plan["name"] for plan in self.constants)
