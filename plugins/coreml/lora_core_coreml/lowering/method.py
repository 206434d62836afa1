"""One method through torch.export, ExecuTorch and coremltools: the slow part, done once for each base and slot plan."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import PluginError
from lora_core.fast_lowering.patching import Patches
from lora_core.pte import ContainerHeader
from lora_core_coreml.lowering.constants import LoweredPackage, read_package
from lora_core_coreml.lowering.fast import decomposed, fast_lowering
from lora_core_coreml.lowering.sentinels import Sentinels
from lora_core_coreml.quiet import quiet
from lora_core_coreml.storage import pte

if TYPE_CHECKING:
    import torch
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import EdgeCompileConfig, EdgeProgramManager, ExecutorchProgramManager

_MARKER = b"partition "
# Says how coremltools converted, 3 KB for each delegate; the runtime reads the compute units only.
_BUILD_ONLY = "pass_pipeline"
# Merges constants that are nearly equal (const_deduplication.py in coremltools 9.0). Ours merges equal bytes only.
_NEAR_EQUALITY = "common::const_deduplication"


@attrs.frozen(kw_only=True)
class LoweredMethod:
    """A method as ExecuTorch lowered it.

    `plan` is its execution plan whose delegates say `partition: i` instead of where their data is, `others` the plans
    of constant methods, `buffers` the tensors those and portable operators read (number 0 is a placeholder). `packages`
    are each partition's CoreML package; `operators` names each partition's operators.
    """

    name: str
    plan: pte.Program
    others: tuple[pte.Program, ...]
    buffers: tuple[bytes, ...]
    packages: tuple[LoweredPackage, ...]
    operators: tuple[tuple[str, ...], ...]


def export_method(module: torch.nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """Return `module` as torch's exported program."""
    import torch

    with quiet(), torch.no_grad(), fast_lowering():
        return torch.export.export(module, inputs)


@attrs.frozen(kw_only=True)
class EdgeMethod:
    """A method in ExecuTorch's edge dialect, before anything is delegated."""

    name: str
    program: torch.export.ExportedProgram
    config: EdgeCompileConfig
    float16: bool


def trace_method(name: str, exported: torch.export.ExportedProgram, *, float16: bool) -> EdgeMethod:
    """Bring an exported program to ExecuTorch's edge dialect; raises as `lower_method` does."""
    with _blaming(name), quiet(), fast_lowering():
        return _to_edge(name, exported, float16)


def delegate_method(
    edge: EdgeMethod,
    directory: Path,
    *,
    constants: Mapping[str, Any] | None = None,
    sentinels: Sentinels | None = None,
) -> LoweredMethod:
    """Lower a traced method as `lower_method` does."""
    with _blaming(edge.name), quiet(), fast_lowering():
        payloads, operators, buffer = _delegate(edge, constants)
    return _read(edge.name, payloads, operators, buffer, directory, sentinels)


def lower_method(
    name: str,
    exported: torch.export.ExportedProgram,
    directory: Path,
    *,
    float16: bool,
    constants: Mapping[str, Any] | None = None,
    sentinels: Sentinels | None = None,
) -> LoweredMethod:
    """Lower an exported program to CoreML and unpack its packages under `directory`, where they must stay.

    `constants` are constant methods to emit beside it, `sentinels` what its slots hold. Raises `PluginError` if
    ExecuTorch or coremltools fails.
    """
    with _blaming(name), quiet(), fast_lowering():
        payloads, operators, buffer = _delegate(_to_edge(name, exported, float16), constants)
    return _read(name, payloads, operators, buffer, directory, sentinels)


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the tools raise: ours from it, naming the method
        raise PluginError(f"Lowering method {name!r} to CoreML failed: {error}") from error


def _read(
    name: str,
    payloads: Sequence[bytes],
    operators: tuple[tuple[str, ...], ...],
    buffer: bytes,
    directory: Path,
    sentinels: Sentinels | None,
) -> LoweredMethod:
    roots = [_unpack(payload, directory / f"{name}_{i}") for i, payload in enumerate(payloads)]
    program = pte.decode(buffer, where=name)
    plan, others = _split_plans(program, name, buffer)
    return LoweredMethod(
        name=name,
        plan=plan,
        others=others,
        buffers=_buffers(program, buffer),
        packages=tuple(read_package(root, sentinels or {}) for root in roots),
        operators=operators,
    )


def _to_edge(name: str, exported: torch.export.ExportedProgram, float16: bool) -> EdgeMethod:
    """Take the first of the two steps of ExecuTorch 1.5.1's `to_edge_transform_and_lower`."""
    from executorch.exir import EdgeCompileConfig
    from executorch.exir.program._program import _gen_edge_manager_for_partitioners

    partitioner, config = _partitioner(float16), EdgeCompileConfig(_check_ir_validity=False)
    program = decomposed(exported, partitioner)
    manager = _gen_edge_manager_for_partitioners({name: [partitioner]}, {name: program}, config, {})
    return EdgeMethod(name=name, program=manager.exported_program(name), config=config, float16=float16)


def _delegate(
    edge: EdgeMethod, constants: Mapping[str, Any] | None
) -> tuple[list[bytes], tuple[tuple[str, ...], ...], bytes]:
    """Return each partition's package, the operators in it, and the program with markers in their places."""
    from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
    from executorch.exir.program import _program

    from lora_core_coreml.lowering import breaks

    config = copy.copy(edge.config)
    manager = EdgeProgramManager({edge.name: edge.program}, dict(constants or {}), config)
    with ExitStack() as stack:
        # Its first step is done.
        Patches(stack).replace(_program, "_gen_edge_manager_for_partitioners", lambda *_: manager)
        manager = to_edge_transform_and_lower(
            {edge.name: edge.program}, partitioner=[_partitioner(edge.float16)], compile_config=config
        )
    payloads, operators = _take_payloads(manager.exported_program(edge.name))
    breaks.remove(manager)
    return payloads, operators, _to_executorch(manager).buffer


def _partitioner(float16: bool) -> CoreMLPartitioner:
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import (
        MULTIMETHOD_WEIGHT_SHARING_STRATEGY,
        CoreMLBackend,
    )
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    passes = [item for item in ct.PassPipeline.DEFAULT.passes if item != _NEAR_EQUALITY]
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16 if float16 else ct.precision.FLOAT32,
        compute_unit=ct.ComputeUnit.CPU_AND_NE,
        model_type=CoreMLBackend.MODEL_TYPE.MODEL,
        pass_names=passes,
    )
    strategy = MULTIMETHOD_WEIGHT_SHARING_STRATEGY.POSITIONAL
    specs.append(CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec(strategy))
    return CoreMLPartitioner(compile_specs=specs, take_over_mutable_buffer=False)


def _to_executorch(edge: EdgeProgramManager) -> ExecutorchProgramManager:
    from executorch.exir.capture._config import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    return edge.to_executorch(
        ExecutorchBackendConfig(
            extract_delegate_segments=True,
            do_quant_fusion_and_const_prop=True,
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
        )
    )


def _take_payloads(program: torch.export.ExportedProgram) -> tuple[list[bytes], tuple[tuple[str, ...], ...]]:
    """Take each partition's package out of the program and leave a marker with its number."""
    payloads: list[bytes] = []
    operators: list[tuple[str, ...]] = []
    for node in program.graph.nodes:
        if node.op != "get_attr" or not hasattr(getattr(program.graph_module, node.target), "processed_bytes"):
            continue
        lowered = getattr(program.graph_module, node.target)
        inner = lowered.original_module.graph_module.graph.nodes
        operators.append(tuple(str(n.target) for n in inner if n.op == "call_function"))
        payloads.append(lowered.processed_bytes)
        lowered._processed_bytes = _MARKER + str(len(payloads) - 1).encode()
    return payloads, tuple(operators)


def _unpack(payload: bytes, directory: Path) -> Path:
    from executorch.backends.apple.coreml import executorchcoreml

    directory.mkdir(parents=True)
    if not executorchcoreml.unflatten_directory_contents(payload, str(directory)):
        raise PluginError("ExecuTorch could not unpack the CoreML package it had made.")
    (root,) = directory.iterdir()
    return root


def _split_plans(program: pte.Program, name: str, buffer: bytes) -> tuple[pte.Program, tuple[pte.Program, ...]]:
    base = ContainerHeader.read(buffer).segment_base
    plan = next(plan for plan in program["execution_plan"] if plan["name"] == name)
    for delegate in plan["delegates"]:
        entry = program["segments"][delegate.pop("processed")["index"]]
        marker = buffer[base + entry["offset"] : base + entry["offset"] + entry["size"]]
        delegate["partition"] = int(marker.removeprefix(_MARKER))
        delegate["compile_specs"] = [spec for spec in delegate["compile_specs"] if spec["key"] != _BUILD_ONLY]
    return plan, tuple(plan for plan in program["execution_plan"] if plan["name"] != name)


def _buffers(program: pte.Program, buffer: bytes) -> tuple[bytes, ...]:
    if program.get("mutable_data_segments"):
        raise PluginError("The lowered program has mutable buffers with initial values, which cannot be linked.")
    segment = program.get("constant_segment")
    if not segment or not segment["offsets"]:
        return (b"",)
    entry = program["segments"][segment["segment_index"]]
    base = ContainerHeader.read(buffer).segment_base + int(entry["offset"])
    offsets: Sequence[int] = [*segment["offsets"], entry["size"]]
    return tuple(buffer[base + start : base + end] for start, end in pairwise(offsets))
