"""Quantizes the base: from the checkpoint's tensors to `foundation.bin`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.backend import ExportJob
from lora_core.events import Emit, Noted, stage
from lora_core.models.decoders import context_limits
from lora_core.preparation.prompts import calibration_prompts
from lora_core_qnn_sim.artifacts import FOUNDATION
from lora_core_qnn_sim.artifacts.foundation import FoundationBinary, read_foundation, write_foundation
from lora_core_qnn_sim.calibrate.calibrate import calibrate_base
from lora_core_qnn_sim.calibrate.rounding import compensated_base
from lora_core_qnn_sim.graph.base_model import (
    RealWeights,
    architecture_of,
    dims_of,
    quantize_base,
    rope_tables,
)
from lora_core_qnn_sim.graph.basis import Basis
from lora_core_qnn_sim.graph.rotation import rotated_base
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.splitting import SplitBase
from lora_core_qnn_sim.options import QnnSimOptions
from lora_core_qnn_sim.quant import weight_bits, widths
from lora_core_qnn_sim.runtime.weights import BaseWeights
from lora_core_qnn_sim.supplied import overridden_base

Array = npt.NDArray[Any]
_LONGEST_PROMPT = 64


def base_spec(job: ExportJob) -> GraphSpec:
    """Return the graph of `job` without slots."""
    options: QnnSimOptions = job.options
    bits = widths(job.policy, options)
    dims = dims_of(job.model.summary)
    rotates = options.rotates and dims.rotatable
    return GraphSpec(
        dims=attrs.evolve(dims, tied=dims.tied and not rotates, rotated=rotates),
        slots=(),
        context_len=options.positions(*context_limits(job.model.summary)),
        input_len=options.input_len,
        act_bits=bits.activations,
        lora_bits=bits.lora,
    )


def build_foundation(job: ExportJob, out: Path, emit: Emit) -> FoundationBinary:
    """Quantize and calibrate the base with zero LoRA, write `foundation.bin` and open it again."""
    options: QnnSimOptions = job.options
    spec = base_spec(job)
    if options.rotates and not spec.dims.rotated:
        emit(Noted(message="The stream is not rotated: the gains of a norm after a layer have no matrix to fold into."))
    length = spec.context_len
    longest = min(_LONGEST_PROMPT, length)
    prompts = calibration_prompts(options.calibration, job.model.tokenizer, spec.dims.vocab_size, longest)
    with stage(emit, "quantize base"):
        architecture = architecture_of(job.model.summary)
        weights = RealWeights.of(job.model.tensors(), architecture.logit_divisor)
        rope = rope_tables(architecture, length)
        bits = weight_bits(job.model.summary, widths(job.policy, options))
        base, basis = _quantized(spec, options, weights, rope, bits, prompts)
    with stage(emit, "calibrate base"):
        base, supplied = overridden_base(options, spec, base)
        encodings = calibrate_base(spec, base, prompts) | supplied
    foundation = FoundationBinary(spec=spec, base=base, encodings=encodings, prompts=tuple(prompts), basis=basis)
    with stage(emit, "write foundation"):
        write_foundation(out / FOUNDATION, foundation)
    return read_foundation(out / FOUNDATION)


def _quantized(
    spec: GraphSpec,
    options: QnnSimOptions,
    weights: Mapping[str, Array],
    rope: tuple[Array, Array],
    bits: Mapping[str, int],
    prompts: Sequence[npt.NDArray[np.int64]],
) -> tuple[BaseWeights, Basis]:
    """Bring the weights to a basis that suits the grids, and round them there."""
    gains = None
    if spec.dims.rotated:
        weights, gains = rotated_base(weights, spec.dims.n_layers)
    by_importance = options.scale_search == "importance"
    rounded = compensated_base(spec, weights, rope, bits, prompts, split=options.splits, by_importance=by_importance)
    weights = SplitBase(weights=weights, splits=rounded.splits)
    return quantize_base(weights, *rope, bits, rounded.matrices), Basis(gains=gains, splits=rounded.splits)
