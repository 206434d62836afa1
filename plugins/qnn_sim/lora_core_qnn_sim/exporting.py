"""Builds the foundation and the context binary of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.events import Emit, stage
from lora_core.models.base import ModelOptions
from lora_core_qnn_sim.artifacts.context_binary import ContextBinary, read_context, write_context, zero_lora
from lora_core_qnn_sim.artifacts.foundation import Foundation, read_foundation, write_foundation
from lora_core_qnn_sim.artifacts.initial import initial_branch
from lora_core_qnn_sim.calibrate.calibrate import (
    calibrate_adapter,
    calibrate_base,
    shared_encodings,
)
from lora_core_qnn_sim.calibrate.prompts import calibration_prompts
from lora_core_qnn_sim.calibrate.rounding import compensated, observe_inputs
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.graph.base_model import dims_of, quantize_base, real_weights, rope_tables
from lora_core_qnn_sim.graph.basis import Basis
from lora_core_qnn_sim.graph.rotation import rotated_base
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.splitting import find_splits, split_base, split_moments
from lora_core_qnn_sim.lora import graph_slots, quantize_lora, real_lora
from lora_core_qnn_sim.options import QnnSimOptions
from lora_core_qnn_sim.quant import weight_bits, widths
from lora_core_qnn_sim.runtime.weights import BaseWeights
from lora_core_qnn_sim.supplied import overridden_base

Array = npt.NDArray[Any]

FOUNDATION = "foundation.bin"
CONTEXT = "context.bin"


def base_spec(job: ExportJob) -> GraphSpec:
    """Return the graph of `job` without slots."""
    options: QnnSimOptions = job.options
    bits = widths(job.policy, options)
    dims = dims_of(job.model.summary)
    return GraphSpec(
        dims=attrs.evolve(dims, tied=dims.tied and not options.rotates, rotated=options.rotates),
        slots=(),
        context_len=options.context_len,
        input_len=options.input_len,
        act_bits=bits.activations,
        lora_bits=bits.lora,
    )


def build_foundation(job: ExportJob, out: Path, emit: Emit) -> Foundation:
    """Quantize and calibrate the base with zero LoRA, write `foundation.bin` and open it again."""
    options: QnnSimOptions = job.options
    spec = base_spec(job)
    prompts = calibration_prompts(
        options.calibration, job.model.tokenizer, spec.dims.vocab_size, min(64, options.context_len)
    )
    with stage(emit, "load base"):
        length = options.context_len
        # A dynamic sequence length needs room for its example; the tables and weights are all that is used here.
        asked = ModelOptions(attention="sdpa", max_context_len=length, max_seq_len=length, dynamic_seq_len=False)
        model = job.model.load(asked)
        weights = real_weights(model, dims_of(model.summary))
        cos, sin = rope_tables(model, spec.dims, length)
        del model
    with stage(emit, "quantize base"):
        bits = weight_bits(job.model.summary, widths(job.policy, options))
        base, basis = _quantized(spec, options, weights, (cos, sin), bits, prompts)
        del weights
    with stage(emit, "calibrate base"):
        base, supplied = overridden_base(options, spec, base)
        encodings = calibrate_base(spec, base, prompts) | supplied
    foundation = Foundation(spec=spec, base=base, encodings=encodings, prompts=tuple(prompts), basis=basis)
    with stage(emit, "write foundation"):
        write_foundation(out / FOUNDATION, foundation)
    return read_foundation(out / FOUNDATION)


def _quantized(
    spec: GraphSpec, options: QnnSimOptions, weights: Mapping[str, Array], rope: tuple[Array, Array],
    bits: Mapping[str, int], prompts: Sequence[npt.NDArray[np.int64]],
) -> tuple[BaseWeights, Basis]:  # fmt: skip
    """Bring the weights to a basis that suits the grids, and round them there."""
    gains = None
    if options.rotates:
        weights, gains = rotated_base(weights, spec.dims.n_layers)
    seen = observe_inputs(spec, weights, *rope, prompts)
    splits = find_splits(seen.peaks) if options.splits else {}
    weights, moments = split_base(weights, splits), split_moments(seen.moments, splits)
    base = quantize_base(weights, *rope, bits)
    linears = compensated(spec, weights, base.linears, moments)
    return attrs.evolve(base, linears=linears), Basis(gains=gains, splits=splits)


def build_context(
    job: ExportJob, foundation: Foundation, out: Path, emit: Emit, supplied: Mapping[str, Mapping[str, Encoding]]
) -> ContextBinary:
    """Write `context.bin` for the job's plan and mode and open it again."""
    options: QnnSimOptions = job.options
    hot = options.hot_switch and bool(job.adapters)
    plan = job.plans[0] if job.plans else SlotPlan(slots=())
    single = attrs.evolve(foundation.spec, slots=graph_slots(plan, foundation.basis))
    count = len(job.adapters) if hot else 1
    spec = attrs.evolve(single, slots=graph_slots(plan, foundation.basis, copies=count), alphas=count)
    branch, lora = initial_branch(spec), zero_lora(spec)
    if job.adapters and (hot or options.quant_updatable == "none"):
        with stage(emit, "calibrate shared encodings"):
            branch = _shared_branch(single, spec, foundation, job.adapters, supplied)
    if hot:
        lora = quantize_lora(spec, real_lora(spec, job.adapters, foundation.basis), branch)
    context = ContextBinary(
        spec=spec,
        mode="none" if hot else options.quant_updatable,  # type: ignore[arg-type]
        foundation=foundation.digest,
        branch=branch,
        lora=lora,
        adapters=tuple(adapter.name for adapter in job.adapters) if hot else (),
    )
    write_context(out / CONTEXT, context)
    return read_context(out / CONTEXT)


def _shared_branch(
    single: GraphSpec, spec: GraphSpec, foundation: Foundation, adapters: Sequence[Adapter],
    supplied: Mapping[str, Mapping[str, Encoding]],
) -> dict[str, Encoding]:  # fmt: skip
    """Return branch encodings that cover every adapter, and in a hot-switch graph all of them at once."""
    sets = []
    for adapter in adapters:
        weights = real_lora(single, [adapter], foundation.basis)
        own = calibrate_adapter(single, foundation, weights, "none")
        sets.append(own | dict(supplied.get(adapter.name, {})))
    if spec.alphas > 1:
        together = real_lora(spec, adapters, foundation.basis)
        sets.append(calibrate_adapter(spec, foundation, together, "none"))
    return shared_encodings(sets)
