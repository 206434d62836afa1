"""Several adapters as one: rank concatenation with a strength each (PEFT's `add_weighted_adapter`, type `cat`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.adapter import Adapter, LoraPair
from lora_core.adapters.ordering import natural_key
from lora_core.adapters.slots.padding import folded_b
from lora_core.errors import AdapterError, Problem

if TYPE_CHECKING:
    import numpy.typing as npt


@attrs.frozen(kw_only=True)
class StackedA:
    """The A matrices of several pairs above one another, as a lazy tensor."""

    pairs: tuple[LoraPair, ...]
    dtype: str = "F32"

    @property
    def name(self) -> str:
        """The keys of the parts."""
        return " + ".join(pair.a.name for pair in self.pairs)

    @property
    def path(self) -> Path:
        """The file of the first part."""
        return self.pairs[0].a.path

    @property
    def shape(self) -> tuple[int, ...]:
        """(sum of ranks, in_features)."""
        return (sum(pair.rank for pair in self.pairs), self.pairs[0].in_features)

    def read(self) -> npt.NDArray[np.float32]:
        """Return the parts one above the other."""
        return np.concatenate([pair.a.read() for pair in self.pairs], axis=0)


@attrs.frozen(kw_only=True)
class StackedB:
    """The B matrices of several pairs side by side, each with its own scaling folded in, as a lazy tensor."""

    pairs: tuple[LoraPair, ...]
    dtype: str = "F32"

    @property
    def name(self) -> str:
        """The keys of the parts."""
        return " + ".join(pair.b.name for pair in self.pairs)

    @property
    def path(self) -> Path:
        """The file of the first part."""
        return self.pairs[0].b.path

    @property
    def shape(self) -> tuple[int, ...]:
        """(out_features, sum of ranks)."""
        return (self.pairs[0].out_features, sum(pair.rank for pair in self.pairs))

    def read(self) -> npt.NDArray[np.float32]:
        """Return the parts side by side, C-contiguous."""
        return np.ascontiguousarray(np.concatenate([folded_b(pair) for pair in self.pairs], axis=1))


def compose(name: str, parts: Sequence[tuple[Adapter, float]]) -> Adapter:
    """Return one adapter whose effect is the sum of the parts' effects, each times its strength.

    Parts may differ in rank and targets; a module gets the ranks of the parts that target it, in the order of `parts`.
    Scalings are folded into B, as a link would: a composite of one part has the bytes of that adapter at that
    strength. Unlike PEFT's, the result is right for rsLoRA too (PEFT 0.21.2 keeps `use_rslora` of the first part and so
    scales the sum by the square root of its rank). Raises `AdapterError` if the parts are not of one base.
    """
    if not parts:
        raise AdapterError(f"Composite {name!r} has no parts.")
    scaled = [adapter.scaled(strength) for adapter, strength in parts]
    by_module: dict[str, list[LoraPair]] = {}
    for adapter in scaled:
        for pair in adapter.pairs:
            by_module.setdefault(pair.module, []).append(pair)
    problems = [problem for module, pairs in by_module.items() for problem in _clashes(name, module, pairs)]
    if problems:
        raise AdapterError(problems)
    return Adapter(
        name=name,
        pairs=tuple(
            LoraPair(
                module=module,
                a=StackedA(pairs=tuple(by_module[module])),
                b=StackedB(pairs=tuple(by_module[module])),
                scaling=1.0,
            )
            for module in sorted(by_module, key=natural_key)
        ),
        digest=hashlib.sha256("+".join(adapter.digest for adapter in scaled).encode()).hexdigest(),
        source=" + ".join(adapter.source for adapter, _ in parts),
        base_model=next((adapter.base_model for adapter in scaled if adapter.base_model), None),
    )


def _clashes(name: str, module: str, pairs: Sequence[LoraPair]) -> list[Problem]:
    first = (pairs[0].in_features, pairs[0].out_features)
    return [
        Problem(
            what=f"The parts of composite {name!r} differ in the size of {module}",
            where=f"{pair.a.path}: {pair.a.name}",
            remedy="Combine adapters of one base only.",
        )
        for pair in pairs
        if (pair.in_features, pair.out_features) != first
    ]
