"""Whether a section may be applied to a context: every content rule, one named refusal each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.errors import Problem
from lora_core_qnn_sim.artifacts.context_binary import GRAPH, ContextBinary, lora_dtype
from lora_core_qnn_sim.artifacts.section import Section
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.errors import (
    ForeignBaseError,
    ForeignGraphError,
    IncompleteSectionError,
    NotUpdatableError,
    OutOfScopeError,
    SectionError,
    SectionsNotAllowedError,
    TensorDtypeError,
    TensorShapeError,
)
from lora_core_qnn_sim.graph.nodes import lora_weights
from lora_core_qnn_sim.graph.widths import tensor_bits
from lora_core_qnn_sim.modes import encodings_scope

_OWN_SECTIONS = "Use the sections of this bundle."


@attrs.frozen(kw_only=True, eq=False)
class Rules:
    """What the sections of one context may contain, worked out once."""

    context: ContextBinary
    shapes: Mapping[str, tuple[int, int]]
    dtype: np.dtype[Any]
    scope: frozenset[str]
    bits: Mapping[str, int]

    @classmethod
    def of(cls, context: ContextBinary) -> Rules:
        """Return the rules of `context`."""
        return cls(
            context=context,
            shapes=lora_weights(context.spec),
            dtype=lora_dtype(context.spec),
            scope=encodings_scope(context.spec, context.mode),
            bits=tensor_bits(context.spec),
        )

    def admit(self, section: Section) -> dict[str, Encoding]:
        """Check identity and content of `section` and return its encodings; raises a `SectionError`."""
        self._check_identity(section)
        self._check_weights(section)
        self._check_encodings(section)
        return {name: self._encoding(section, name, pair) for name, pair in section.encodings.items()}

    def _check_identity(self, section: Section) -> None:
        if self.context.hot_switch:
            what = "This context takes no sections: it was exported for hot switch"
            raise _refusal(SectionsNotAllowedError, section, [what], "Choose the adapter with the alpha vector.")
        if section.foundation != self.context.foundation:
            what = f"Base {section.foundation[:12]} is not this context's {self.context.foundation[:12]}"
            raise _refusal(ForeignBaseError, section, [what], _OWN_SECTIONS)
        if section.graph != GRAPH or section.interface != self.context.interface:
            what = "It was made for another graph, other slots or ranks, or another mode"
            raise _refusal(ForeignGraphError, section, [what], _OWN_SECTIONS)

    def _check_weights(self, section: Section) -> None:
        weights = section.weights
        unknown = [name for name in weights if name not in self.shapes]
        if unknown:
            raise _refusal(NotUpdatableError, section, [f"{name} is not updatable" for name in unknown])
        wrong = [n for n, a in weights.items() if a.shape != self.shapes[n]]
        if wrong:
            what = [f"{n} has shape {weights[n].shape}, the graph {self.shapes[n]}" for n in wrong]
            raise _refusal(TensorShapeError, section, what)
        wrong = [n for n, a in weights.items() if a.dtype != self.dtype]
        if wrong:
            what = [f"{n} has type {weights[n].dtype}, the graph {self.dtype}" for n in wrong]
            raise _refusal(TensorDtypeError, section, what)
        if section.part != "encodings" and len(weights) != len(self.shapes):
            missing = [f"{name} is missing" for name in self.shapes if name not in weights]
            raise _refusal(IncompleteSectionError, section, missing)
        if section.part == "encodings" and weights:
            raise _refusal(NotUpdatableError, section, ["An encodings-only section carries weights"])

    def _check_encodings(self, section: Section) -> None:
        outside = [name for name in section.encodings if name not in self.bits]
        if outside:
            raise _refusal(NotUpdatableError, section, [f"The graph has no tensor {name}" for name in outside])
        outside = [name for name in section.encodings if name not in self.scope]
        if outside:
            what = [f"Mode {self.context.mode!r} keeps the encoding of {name} fixed" for name in outside]
            raise _refusal(OutOfScopeError, section, what)
        if section.part == "weights" and section.encodings:
            raise _refusal(OutOfScopeError, section, ["A weights-only section carries encodings"])
        if section.part != "weights" and len(section.encodings) != len(self.scope):
            missing = [f"The encoding of {n} is missing" for n in sorted(self.scope) if n not in section.encodings]
            raise _refusal(IncompleteSectionError, section, missing)

    def _encoding(self, section: Section, name: str, pair: npt.NDArray[Any]) -> Encoding:
        scale, offset, bits = float(pair[0]), float(pair[1]), self.bits[name]
        sound = np.isfinite(scale) and scale > 0 and offset.is_integer() and -(1 << bits) < offset <= 0
        symmetric = name in self.shapes
        if not sound or (symmetric and offset != -(1 << (bits - 1))):
            what = f"The encoding of {name} (scale {scale}, offset {offset}) is no grid of {bits} bits"
            raise _refusal(TensorDtypeError, section, [what])
        return Encoding(bits=bits, scale=scale, offset=int(offset), symmetric=symmetric)


def _refusal(
    error: type[SectionError], section: Section, what: list[str], remedy: str = "Export the section again."
) -> SectionError:
    shown = what[:8] + ([f"and {len(what) - 8} more"] if len(what) > 8 else [])
    return error([Problem(what=f"Section {section.path.name}: {text}", remedy=remedy) for text in shown])
