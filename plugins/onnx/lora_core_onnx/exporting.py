"""One export: weights, model, configuration, and the adapters linked."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from lora_core.backend import Artifacts, ExportJob, WrittenFile
from lora_core.bundle.bundle import Method
from lora_core.events import Emit, Warned, stage
from lora_core.models.decoders import context_limits
from lora_core.preparation.rounded import RoundedLayers
from lora_core.quant.undivided import describe_undivided
from lora_core_onnx.checks import architecture_of
from lora_core_onnx.genai import genai_config
from lora_core_onnx.graph.assembly import Assembly
from lora_core_onnx.graph.decoder import DecoderGraph, DecoderSpec
from lora_core_onnx.graph.weights import StoredBase
from lora_core_onnx.linking import link_all
from lora_core_onnx.names import GENAI, GENAI_TEXT, MODEL, WEIGHTS
from lora_core_onnx.options import OnnxOptions
from lora_core_onnx.storage.model_file import FOUNDATION
from lora_core_onnx.storage.weights import WeightsFile


def export(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Write all of `job` into `out`; of the base no more than a piece of a tensor is in memory."""
    options: OnnxOptions = job.options
    summary = job.model.summary
    architecture, context_len = architecture_of(summary), options.context_len(*context_limits(summary))
    assignment = job.policy.assign(summary.layers)
    for sentence in describe_undivided(job.policy, assignment):
        emit(Warned(message=sentence))
    spec = DecoderSpec(
        architecture=architecture,
        layers=summary.layers,
        schemes=assignment.schemes,
        context_len=context_len,
        lora=options.lora == "inputs",
    )
    with options.how_to_round.layers(job.model, assignment, out, emit) as known:
        foundation = _write_base(job, spec, known, out, emit)
    configuration = genai_config(summary, architecture, context_len)
    places = (GENAI,) if job.model.tokenizer is None else (GENAI, GENAI_TEXT)
    for place in places:
        (out / place).parent.mkdir(exist_ok=True)
        (out / place).write_bytes(configuration)
    linked = link_all(foundation, job.adapters, out, emit)
    return Artifacts(
        foundation=foundation,
        files=(
            WrittenFile(path=WEIGHTS, role="foundation", sha256=foundation),
            WrittenFile(path=MODEL, role="program"),
            *(WrittenFile(path=place, role="program") for place in places),
            *linked.files,
        ),
        methods=(Method(name="forward", program=MODEL), *linked.methods),
        versions={name: version(name) for name in ("onnx", "onnxruntime")},
    )


def _write_base(job: ExportJob, spec: DecoderSpec, known: RoundedLayers | None, out: Path, emit: Emit) -> str:
    """Write weights and model, layers that are `known` as they were rounded; return the SHA-256 of the weights, which
    is the fingerprint.
    """
    graph = Assembly()
    with stage(emit, "Write the base"), WeightsFile(out / WEIGHTS) as file:
        DecoderGraph(spec, graph, StoredBase(job.model.tensors(), file, known)).assemble()
        foundation = file.close()
        (out / MODEL).write_bytes(graph.model(file.tensors, {FOUNDATION: foundation}))
    return foundation
