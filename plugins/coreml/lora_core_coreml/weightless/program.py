"""Lowered methods whose constants say where they come from instead of what they are."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from lora_core_coreml.lowering.constants import Constant, ConstantData, LoweredPackage
from lora_core_coreml.lowering.method import LoweredMethod
from lora_core_coreml.lowering.program import LoweredProgram
from lora_core_coreml.program.naming import Kind
from lora_core_coreml.program.object import SlotPart
from lora_core_coreml.storage import mil
from lora_core_coreml.weightless.forms import (
    KnownForms,
    TensorForm,
    Weights,
    is_uniform,
    plain_tensors,
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
        check_told_apart(module)
        known = KnownForms(module)
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

    def called(self, name: Callable[[Kind], str]) -> Self:
        """Return these methods, which are those of one group, as `name` calls each kind."""
        methods, origins = [], {}
        for kind, method in self.lowered.methods:
            new = name(kind)
            methods.append((kind, attrs.evolve(method, name=new, plan={**method.plan, "name": new})))
            origins[new] = self.origins[method.name]
        return attrs.evolve(self, lowered=attrs.evolve(self.lowered, methods=tuple(methods)), origins=origins)

    def fill(self, weights: Weights) -> LoweredProgram:
        """Return the program that lowering a base with `weights` would have given; reading them is left for later."""
        known: dict[ConstantOrigin, ConstantData] = {}

        def filled(method: LoweredMethod) -> LoweredMethod:
            packages = tuple(
                LoweredPackage(model=package.model, constants=tuple(_constant(o, weights, known) for o in origins))
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


def check_told_apart(module: torch.nn.Module) -> None:
    """Raise `NotWeightlessError` for weights that no stored constant stands for."""
    for path, part, tensor in plain_tensors(module):
        if tensor.numel() < _STORED_APART and not is_uniform(tensor):
            raise NotWeightlessError(f"{path} {part}".rstrip() + " is so small that functions hold its values")


def _origin(constant: Constant, known: KnownForms) -> ConstantOrigin:
    make: Callable[..., ConstantOrigin] = partial(
        ConstantOrigin, name=constant.name, dtype=constant.key.dtype, padding_bits=constant.key.padding_bits
    )
    if constant.slot is not None:
        return make(slot=constant.slot)
    digest = constant.key.sha256
    if (form := known.by_row.get(digest)) is not None:
        return make(form=form)
    data = constant.read()
    # What is computed from random weights is never the same all over: zero biases are, and uniform weights.
    if any(data == data[:size] * (len(data) // size) for size in (1, 2, 4)):
        return make(data=data)
    if (form := known.by_bytes.get(digest)) is not None:
        return make(form=form)
    raise NotWeightlessError(f"constant {constant.name} is no stored form of a weight")


def _constant(origin: ConstantOrigin, weights: Weights, known: dict[ConstantOrigin, ConstantData]) -> Constant:
    identity = attrs.evolve(origin, name="")
    if identity not in known:
        form = origin.form
        known[identity] = ConstantData(
            dtype=origin.dtype,
            size=len(origin.data) if form is None else weights.size(form),
            padding_bits=origin.padding_bits,
            pieces=partial(iter, (origin.data,)) if form is None else partial(weights.pieces, form),
        )
    return Constant(name=origin.name, data=known[identity], slot=origin.slot)


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
