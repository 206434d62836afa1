"""All lowered methods of an export: the base's, and those of one template for each slot plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs

from lora_core_coreml.lowering.method import LoweredMethod
from lora_core_coreml.program.naming import Kind

Methods = tuple[tuple[Kind, LoweredMethod], ...]


def template_name(number: int, kind: Kind) -> str:
    """Return what a method of template `number` is called until it is linked."""
    return f"template{number}_{kind}"


def names_of_groups(templates: int) -> list[Callable[[Kind], str]]:
    """Return what gives methods their names by kind: the base's, and those of each of so many templates."""
    return [str, *(partial(template_name, number) for number in range(templates))]


@attrs.frozen(kw_only=True)
class LoweredProgram:
    """Methods with their kinds; names are unique among all of them."""

    methods: Methods
    templates: tuple[Methods, ...]

    @property
    def everything(self) -> tuple[LoweredMethod, ...]:
        """All methods, the base's first."""
        return tuple(method for methods in (self.methods, *self.templates) for _, method in methods)

    def map(self, change: Callable[[LoweredMethod], LoweredMethod]) -> LoweredProgram:
        """Return the program with every method changed."""

        def changed(methods: Methods) -> Methods:
            return tuple((kind, change(method)) for kind, method in methods)

        return LoweredProgram(methods=changed(self.methods), templates=tuple(map(changed, self.templates)))
