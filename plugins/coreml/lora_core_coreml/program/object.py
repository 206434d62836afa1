"""A lowered program as an object: what a link needs besides the foundation's bytes.

A program is a set of methods. Each has an ExecuTorch execution plan and, for every partition, one CoreML function. The
functions of a template method carry relocations: references into the blob file that name a slot's matrix instead of a
stored constant. All other references point into the foundation, the part of the blob file that no adapter changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs

from lora_core_coreml.program.naming import Kind
from lora_core_coreml.storage.blobfile import BlobKey, StoredBlob
from lora_core_coreml.storage.pte import Program

Matrix = Literal["a", "b"]


@attrs.frozen(kw_only=True)
class Relocation:
    """The `reference`-th reference of a function into the blob file is to matrix `matrix` of slot `module`."""

    reference: int
    module: str
    matrix: Matrix


@attrs.frozen(kw_only=True)
class EmbeddedConstant:
    """The `reference`-th reference is to a constant that the base does not have: a LoRA layer's zero bias."""

    reference: int
    key: BlobKey
    data: bytes


@attrs.frozen(kw_only=True)
class Function:
    """A CoreML function: its MIL protobuf, its description (inputs and outputs), and what a link must fill in."""

    message: Any
    description: Any
    relocations: tuple[Relocation, ...] = ()
    embedded: tuple[EmbeddedConstant, ...] = ()


@attrs.frozen(kw_only=True)
class MethodObject:
    """A method: `plan` is an ExecuTorch execution plan whose delegates name partitions; one function a partition."""

    kind: Kind
    plan: Program
    functions: tuple[Function, ...]


@attrs.frozen(kw_only=True)
class Foundation:
    """The base's constants of one partition: bytes `start` to `start + size` of `path` are a blob file's first `size`.

    `sha256` covers those bytes without the file header, whose count changes with adapters. `shell` is a CoreML model
    without functions: versions and build information that every linked model carries.
    """

    path: Path
    start: int
    size: int
    blobs: tuple[StoredBlob, ...]
    sha256: str
    shell: Any


@attrs.frozen(kw_only=True)
class ProgramObject:
    """Everything a program is made of except adapters.

    `methods` are the base's; `templates` has the methods of each slot plan; `constants` are execution plans of constant
    methods; `constant_offsets` and `constant_data` are the program's constant segment.
    """

    methods: tuple[MethodObject, ...]
    templates: tuple[tuple[MethodObject, ...], ...]
    foundations: tuple[Foundation, ...]
    constants: tuple[Program, ...]
    constant_offsets: tuple[int, ...]
    constant_data: bytes
    version: int = 0

    @property
    def multifunction(self) -> bool:
        """True if there are decode and prefill methods."""
        return len(self.methods) > 1
