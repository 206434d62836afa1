"""Cut graphs of a bundle in which an adapter is chosen at run time, and what the simulator makes of each adapter.

Two arrangements that the vendor's compiler takes without updatable tensors: A and B as inputs of the graph, and all
adapters side by side, chosen by an alpha vector. In both, adapters share encodings: those that cover each one's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.artifacts.foundation import FoundationBinary
from lora_core_qnn_sim.calibrate.calibrate import shared_encodings
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.graph.nodes import lora_weights
from lora_core_qnn_sim.graph.spec import GraphSpec, lora_a
from lora_core_qnn_sim.handover.documents import ALPHA
from lora_core_qnn_sim.handover.quantized import MASK, QuantizedGraph, unsigned
from lora_core_qnn_sim.handover.stored import StoredAdapters
from lora_core_qnn_sim.runtime import kernels
from lora_core_qnn_sim.runtime.executor import Executor
from lora_core_qnn_sim.runtime.kv_cache import QuantizedKvCache

Array = npt.NDArray[Any]


@attrs.frozen(kw_only=True, eq=False)
class TrialRun:
    """One execution: what is given to the compiled graph, and what the simulator makes of it, all unsigned integers."""

    adapter: str
    given: Mapping[str, Array]
    expected: Mapping[str, Array]


@attrs.frozen(kw_only=True, eq=False)
class Trial:
    """A graph to be compiled once, and its executions."""

    name: str
    model: bytes
    runs: tuple[TrialRun, ...]


@attrs.frozen(kw_only=True, eq=False)
class _Case:
    """A graph with the weights and strengths of each adapter."""

    graph: QuantizedGraph
    lora: Mapping[str, Mapping[str, Array]]
    alphas: Mapping[str, Sequence[float]]


def cut(spec: GraphSpec, layers: int) -> GraphSpec:
    """Return the first `layers` layers of a graph, with their slots."""
    kept = tuple(f"layers.{index}." for index in range(layers))
    slots = tuple(slot for slot in spec.slots if slot.layer.startswith(kept))
    return attrs.evolve(spec, slots=slots, dims=attrs.evolve(spec.dims, n_layers=layers))


def adapter_trials(stored: StoredAdapters, adapters: Sequence[str], layers: int) -> Iterator[Trial]:
    """Yield both arrangements of `adapters` in the first `layers` layers."""
    base = with_inputs(stored, adapters, layers)
    weights = _integers(stored, adapters, base)
    case = _Case(graph=base, lora=weights, alphas=dict.fromkeys(adapters, (1.0,)))
    yield _trial("A and B as inputs", case, stored)
    hot = side_by_side(stored, adapters, layers)
    assert hot.lora is not None
    chosen = {name: tuple(float(name == other) for other in adapters) for name in adapters}
    yield _trial("hot switch by alpha", _Case(graph=hot, lora=dict.fromkeys(adapters, hot.lora), alphas=chosen), stored)


def with_inputs(stored: StoredAdapters, adapters: Sequence[str], layers: int) -> QuantizedGraph:
    """Return the first `layers` layers with A and B as inputs, on grids that cover those of all `adapters`."""
    spec = cut(stored.context.spec, layers)
    shared = stored.foundation.with_slots(spec) | dict(stored.context.branch)
    shared |= shared_encodings([stored.encodings[name] for name in adapters])
    return QuantizedGraph(spec=spec, base=stored.foundation.base, encodings=shared, head=False)


def side_by_side(stored: StoredAdapters, adapters: Sequence[str], layers: int, *, head: bool = False) -> QuantizedGraph:
    """Return the first `layers` layers with A and B of all `adapters` in them, one strength for each."""
    graph = with_inputs(stored, adapters, layers)
    weights = list(_integers(stored, adapters, graph).values())
    together = {
        name: np.concatenate([each[name] for each in weights], axis=0 if name.endswith(lora_a("")) else 1)
        for name in weights[0]
    }
    slots = tuple(attrs.evolve(slot, rank=slot.rank * len(adapters)) for slot in graph.spec.slots)
    spec = attrs.evolve(graph.spec, slots=slots, alphas=len(adapters))
    return attrs.evolve(graph, spec=spec, lora=together, head=head)


def _integers(stored: StoredAdapters, adapters: Sequence[str], graph: QuantizedGraph) -> dict[str, dict[str, Array]]:
    """Return the centred integers of A and B of each adapter, on the grids of `graph`."""
    names = lora_weights(graph.spec)
    return {
        adapter: {
            name: graph.encodings[name].quantize(real)
            for name, real in stored.weights(adapter).items()
            if name in names
        }
        for adapter in adapters
    }


def _trial(name: str, case: _Case, stored: StoredAdapters) -> Trial:
    model, grids = case.graph.model()
    tokens = first_tokens(stored.foundation, case.graph.spec)
    runs = tuple(_run(adapter, case, grids, tokens) for adapter in case.lora)
    return Trial(name=name, model=model, runs=runs)


def first_tokens(foundation: FoundationBinary, spec: GraphSpec) -> npt.NDArray[np.int64]:
    """Return as many tokens as one call takes: those of the calibration prompts, again where they are too few."""
    return np.resize(np.concatenate(foundation.prompts), spec.input_len).astype(np.int64)


def _run(adapter: str, case: _Case, grids: Mapping[str, Encoding], tokens: npt.NDArray[np.int64]) -> TrialRun:
    graph, lora = case.graph, case.lora[adapter]
    spec, alphas = graph.spec, kernels.ALPHA.quantize(np.array(case.alphas[adapter]))
    given = opening(graph, grids, tokens) | {ALPHA: unsigned(alphas, kernels.ALPHA)}
    if graph.lora is None:
        given |= {name: unsigned(values, grids[name]) for name, values in lora.items()}
    executor = Executor(spec=spec, base=graph.base, encodings=graph.encodings, lora=lora)
    cache, last = QuantizedKvCache.empty(spec), f"layers.{spec.dims.n_layers - 1}.mlp_add.output"
    stream = executor.activation(last, tokens, cache, alphas)
    expected = {last: unsigned(stream, graph.encodings[last])}
    for index in range(spec.dims.n_layers):
        for part, rows, order in (("key", cache.keys, (1, 2, 0)), ("value", cache.values, (1, 0, 2))):
            expected[f"past_{part}_{index}_out"] = rows[index][: len(tokens)].transpose(order)[:, None]
    return TrialRun(adapter=adapter, given=given, expected=expected)


def opening(graph: QuantizedGraph, grids: Mapping[str, Encoding], tokens: npt.NDArray[np.int64]) -> dict[str, Array]:
    """Return the inputs for the first tokens of a text, but for those of LoRA."""
    spec, dims = graph.spec, graph.spec.dims
    past = spec.context_len - spec.input_len
    mask = np.full((spec.input_len, spec.context_len), grids[MASK].minimum)
    mask[np.tri(spec.input_len, spec.context_len, past) > 0] = 0
    mask[:, :past] = grids[MASK].minimum
    given: dict[str, Array] = {"input_ids": tokens[None].astype(np.int32)}
    reals = {MASK: mask}
    reals |= {
        f"position_ids_{part}": rows[: spec.input_len]
        for part, rows in (("cos", graph.base.cos), ("sin", graph.base.sin))
    }
    for index in range(dims.n_layers):
        reals[f"past_key_{index}_in"] = np.zeros((dims.n_kv_heads, 1, dims.head_dim, past))
        reals[f"past_value_{index}_in"] = np.zeros((dims.n_kv_heads, 1, past, dims.head_dim))
    for name, values in reals.items():
        shaped = values if name.startswith("past") else values[None, None]
        given[name] = unsigned(grids[name].quantize(shaped), grids[name])
    return given
