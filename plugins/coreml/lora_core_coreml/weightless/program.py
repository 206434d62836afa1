"""Lowered methods whose constants say where they come from instead of what they are."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from lora_core.pte import Buffer
from lora_core_coreml.lowering.constants import Constant, LoweredPackage
from lora_core_coreml.lowering.method import LoweredMethod
from lora_core_coreml.lowering.program import LoweredProgram
from lora_core_coreml.program.object import SlotPart
from lora_core_coreml.storage import mil
from lora_core_coreml.storage.blobfile import BlobKey
from lora_core_coreml.weightless.forms import (
    TensorForm,
    forms_by_digest,
    is_uniform,
    plain_tensors,
    stored_bytes,
)

if TYPE_CHECKING:
    import torch

# coremltools 9.0 stores a constant of fewer values inside the function instead of the blob file.
_STORED_APART = 10


class NotWeightlessError(Exception):
    """A lowered method cannot be told apart from its weights; the text says what and why."""


@attrs.frozen(kw_only=True)
class ConstantOrigin:
    """Where a constant comes from: a tensor of the base (`form`), a part of a slot, or `data` that is always there."""

    name: str
    dtype: int
    padding_bits: int
    form: TensorForm | None = None
    slot: SlotPart | None = None
    data: bytes = b""


@attrs.frozen(kw_only=True)
class WeightlessMethods:
    """A lowered program in which `origins` has those of each package's constants, by method name and partition."""

    lowered: LoweredProgram
    origins: Mapping[str, tuple[tuple[ConstantOrigin, ...], ...]]

    @classmethod
    def strip(cls, lowered: LoweredProgram, module: torch.nn.Module) -> Self:
        """Take a program, which was lowered from `module` with stand-ins, apart from them.

        Raises `NotWeightlessError`.
        """
        for path, part, tensor in plain_tensors(module):
            if tensor.numel() < _STORED_APART and not is_uniform(tensor):
                raise NotWeightlessError(f"{path} {part}".rstrip() + " is so small that functions hold its values")
        known = forms_by_digest(module)
        origins = {
            method.name: tuple(
                tuple(_origin(constant, known) for constant in package.constants) for package in method.packages
            )
            for method in lowered.everything
        }
        return cls(lowered=lowered, origins=origins)

    @classmethod
    def joined(cls, groups: Sequence[WeightlessMethods]) -> WeightlessMethods:
        """Return one of the base's methods, which are the first of `groups`, and a template's in each other."""
        base, *templates = (group.lowered.methods for group in groups)
        origins = {name: found for group in groups for name, found in group.origins.items()}
        return cls(lowered=LoweredProgram(methods=base, templates=tuple(templates)), origins=origins)

    def fill(self, module: torch.nn.Module) -> LoweredProgram:
        """Return the program that lowering `module` would have given; its tensors are read when they are written."""
        keys: dict[ConstantOrigin, BlobKey] = {}

        def filled(method: LoweredMethod) -> LoweredMethod:
            packages = tuple(
                LoweredPackage(model=package.model, constants=tuple(_constant(o, module, keys) for o in origins))
                for package, origins in zip(method.packages, self.origins[method.name], strict=True)
            )
            return attrs.evolve(method, packages=packages)

        return self.lowered.map(filled)

    def to_kept(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        """Return a model for each package, and the rest as JSON values."""
        files = {
            _file(method, index): mil.serialize(package.model)
            for method in self.lowered.everything
            for index, package in enumerate(method.packages)
        }

        def document(method: LoweredMethod) -> Mapping[str, Any]:
            return {
                "name": method.name,
                "plan": method.plan,
                "others": list(method.others),
                "buffers": [_text(buffer) for buffer in method.buffers],
                "operators": [list(names) for names in method.operators],
                "origins": [[_origin_to_json(origin) for origin in each] for each in self.origins[method.name]],
            }

        content = {
            "methods": [[kind, document(method)] for kind, method in self.lowered.methods],
            "templates": [[[kind, document(m)] for kind, m in template] for template in self.lowered.templates],
        }
        return files, content

    @classmethod
    def from_kept(cls, directory: Path, content: Mapping[str, Any]) -> Self:
        """Read what `to_kept` gave; raises as `Keepable.from_kept` says."""
        origins: dict[str, tuple[tuple[ConstantOrigin, ...], ...]] = {}

        def method(document: Mapping[str, Any]) -> LoweredMethod:
            name = document["name"]
            origins[name] = tuple(tuple(map(_origin_from_json, each)) for each in document["origins"])
            read = LoweredMethod(
                name=name,
                plan=document["plan"],
                others=tuple(document["others"]),
                buffers=tuple(map(base64.b64decode, document["buffers"])),
                packages=(),
                operators=tuple(tuple(names) for names in document["operators"]),
            )
            models = [mil.parse_model((directory / _file(read, i)).read_bytes()) for i in range(len(origins[name]))]
            return attrs.evolve(read, packages=tuple(LoweredPackage(model=model, constants=()) for model in models))

        lowered = LoweredProgram(
            methods=tuple((kind, method(document)) for kind, document in content["methods"]),
            templates=tuple(
                tuple((kind, method(document)) for kind, document in template) for template in content["templates"]
            ),
        )
        return cls(lowered=lowered, origins=origins)


def _origin(constant: Constant, known: Mapping[str, TensorForm]) -> ConstantOrigin:
    make: Callable[..., ConstantOrigin] = partial(
        ConstantOrigin, name=constant.name, dtype=constant.key.dtype, padding_bits=constant.key.padding_bits
    )
    if constant.slot is not None:
        return make(slot=constant.slot)
    form = known.get(constant.key.sha256)
    if form is not None:
        return make(form=form)
    data = bytes(constant.read())
    # What is computed from random weights is never the same all over: zero biases are, and uniform weights.
    if not any(data == data[:size] * (len(data) // size) for size in (1, 2, 4)):
        raise NotWeightlessError(f"constant {constant.name} is no stored form of a weight")
    return make(data=data)


def _constant(origin: ConstantOrigin, module: torch.nn.Module, keys: dict[ConstantOrigin, BlobKey]) -> Constant:
    read: Callable[[], Buffer] = partial(bytes, origin.data)
    if origin.form is not None:
        read = partial(stored_bytes, module, origin.form)
    identity = attrs.evolve(origin, name="")
    if identity not in keys:
        data = memoryview(read())
        keys[identity] = BlobKey(
            dtype=origin.dtype,
            size=data.nbytes,
            padding_bits=origin.padding_bits,
            sha256=hashlib.sha256(data).hexdigest(),
        )
    return Constant(name=origin.name, key=keys[identity], read=read, slot=origin.slot)


def _origin_to_json(origin: ConstantOrigin) -> Sequence[Any]:
    form, slot = origin.form, origin.slot
    return [
        origin.name,
        origin.dtype,
        origin.padding_bits,
        [form.path, form.part, form.transform] if form else None,
        [slot.module, slot.part] if slot else None,
        _text(origin.data),
    ]


def _origin_from_json(values: Sequence[Any]) -> ConstantOrigin:
    name, dtype, padding_bits, form, slot, data = values
    return ConstantOrigin(
        name=name,
        dtype=dtype,
        padding_bits=padding_bits,
        form=TensorForm(path=form[0], part=form[1], transform=form[2]) if form else None,
        slot=SlotPart(module=slot[0], part=slot[1]) if slot else None,
        data=base64.b64decode(data),
    )


def _file(method: LoweredMethod, index: int) -> str:
    return f"{method.name}_{index}.mlmodel"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
