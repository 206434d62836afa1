"""Calibration of the base and, on top of the frozen base, of each adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.artifacts.foundation import FoundationBinary
from lora_core_qnn_sim.calibrate.ranges import RangeObserver, first_tokens
from lora_core_qnn_sim.encodings.grid import Encoding, covering
from lora_core_qnn_sim.graph.nodes import activations, build_nodes
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.widths import tensor_bits
from lora_core_qnn_sim.lora import weight_encodings
from lora_core_qnn_sim.modes import encodings_scope
from lora_core_qnn_sim.options import Mode
from lora_core_qnn_sim.runtime.floating import FloatRun
from lora_core_qnn_sim.runtime.weights import BaseWeights

Array = npt.NDArray[Any]


def quantized_base(base: BaseWeights) -> Callable[[str], Array]:
    """Return a reader of the base's weights as real float64 numbers, made afresh on each call."""

    def read(name: str) -> Array:
        if name in base.linears:
            weight = base.linears[name]
            return weight.values * weight.scales[:, None].astype(np.float64)
        return base.vectors[name].astype(np.float64)

    return read


def quantized_rows(base: BaseWeights) -> Callable[[str, npt.NDArray[np.int64]], Array]:
    """Return a reader of some rows of the base's weights, the same numbers as `quantized_base` gives."""

    def read(name: str, numbers: npt.NDArray[np.int64]) -> Array:
        weight = base.linears[name]
        return weight.values[numbers] * weight.scales[numbers, None].astype(np.float64)

    return read


def calibrate_base(spec: GraphSpec, base: BaseWeights, prompts: Sequence[npt.NDArray[np.int64]]) -> dict[str, Encoding]:
    """Return encodings of all activations of a graph without slots (zero LoRA)."""
    observer = RangeObserver(bits=tensor_bits(spec), firsts=first_tokens(prompts))
    weight, rows = quantized_base(base), quantized_rows(base)
    FloatRun(spec=spec, weight=weight, base=base, lora={}, observe=observer, rows=rows).logits(prompts)
    return observer.encodings()


def calibrate_adapter(
    spec: GraphSpec, foundation: FoundationBinary, weights: Mapping[str, Array], mode: Mode
) -> dict[str, Encoding]:
    """Return the encodings of one use case for every tensor that `mode` lets change.

    The base's quantized weights are used and its activations are not rounded. Mode `none` returns what
    `adapter_only` would: the caller shares them.
    """
    scope = encodings_scope(spec, "adapter_only" if mode == "none" else mode)
    bits = {name: width for name, width in tensor_bits(spec).items() if name in scope}
    named = set(activations(build_nodes(spec)))
    watched = {name: width for name, width in bits.items() if name in named}
    observer = RangeObserver(bits=watched, firsts=first_tokens(foundation.prompts))
    run = FloatRun(
        spec=spec,
        weight=quantized_base(foundation.base),
        base=foundation.base,
        lora={name: array.astype(np.float64) for name, array in weights.items()},
        observe=observer,
        rows=quantized_rows(foundation.base),
    )
    run.watch(foundation.prompts, observer.bits)
    return observer.encodings() | weight_encodings(spec, weights)


def shared_encodings(members: Iterable[Mapping[str, Encoding]]) -> dict[str, Encoding]:
    """Return the encodings that a group shares: per tensor, the grid that covers every member's."""
    sets = list(members)
    return {name: covering(each[name] for each in sets) for name in sets[0]}
