"""Lower torch modules to ExecuTorch programs for XNNPACK, with constants outside of the program.

The steps are those of ExecuTorch 1.5.1's own LLM exporter (`extension/llm/export/builder.py` and
`_to_edge_and_lower_llama_xnnpack` of `examples/models/llama/export_llama_lib.py`), for any module, with one
partitioner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.fast_lowering.patching import Patches
from lora_core.models.base import BaseModel
from lora_core.models.tracing import tracing
from lora_core_xnnpack.lowering.fast import fast_lowering
from lora_core_xnnpack.lowering.slot_inputs import (
    SlotInput,
    slot_inputs,
    taking_inputs,
    with_slots_as_inputs,
)

if TYPE_CHECKING:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, EdgeProgramManager, ExecutorchProgramManager
    from torch.export import ExportedProgram

    from lora_core_xnnpack.lowering.known import KnownTensors

FOUNDATION_TAG = "foundation"
LORA_TAG = "lora"
_UNWRAPPED = re.compile(r"\.parametrizations\.(\w+)\.original\d+$")


@attrs.frozen(kw_only=True)
class Lowered:
    """A lowered program: ExecuTorch's manager, which holds the program and the data put outside of it, by tag.

    `slot_inputs` are what methods take of slots behind their own inputs, by method.
    """

    manager: ExecutorchProgramManager
    slot_inputs: Mapping[str, Sequence[SlotInput]] = attrs.field(factory=dict)

    @property
    def pte(self) -> bytes:
        """The program file's bytes."""
        return bytes(self.manager.buffer)


@attrs.frozen(kw_only=True)
class EdgeMethods:
    """Methods of a program in ExecuTorch's edge dialect, before anything is delegated.

    `lora` are the names of the nodes whose constants fill slots; these go to the file that `lora_tag` names. Constants
    of nodes named in `inside` stay in the program. With `takes_slots` methods take what fills slots as inputs.
    """

    manager: EdgeProgramManager
    lora: frozenset[str]
    inside: frozenset[str]
    lora_tag: str | None
    takes_slots: bool = False

    @property
    def programs(self) -> Mapping[str, ExportedProgram]:
        """The methods by name, in their order."""
        programs: Mapping[str, ExportedProgram] = self.manager._edge_programs
        return programs

    def file_of(self, node: torch.fx.Node) -> str | None:
        """Return the tag of the file that a node's constant goes to; None is the program."""
        if node.name in self.inside:
            return None
        return self.lora_tag if node.name in self.lora else FOUNDATION_TAG


def _trace(module: torch.nn.Module, model: BaseModel) -> ExportedProgram:
    """Trace `module` to the operators that ExecuTorch lowers, without transposes that undo each other.

    ExecuTorch's exporter traces with dynamo, makes the graph functional, and decomposes it in a third tracing. Without
    dynamo, and with both done at once, the lowered programs are the same, byte for byte (seen on 1.5.1), but for the
    debug handles of quantized layers, which dynamo gives to a whole layer.
    """
    import torch
    from executorch.extension.llm.export.export_passes import RemoveRedundantTransposes
    from torch.nn.attention import SDPBackend

    # The math kernel is for tracing only; ExecuTorch's exporter does the same (builder.py, `_export`).
    with torch.nn.attention.sdpa_kernel([SDPBackend.MATH]), torch.no_grad():
        with tracing(model.summary):
            program = torch.export.export(
                module,
                model.example_args,
                kwargs=model.example_kwargs,
                dynamic_shapes=model.dynamic_shapes,
                strict=False,
            )
        RemoveRedundantTransposes()(program.graph_module)
        with tracing(model.summary):
            return program.run_decompositions(_decompositions(program))


def _decompositions(program: ExportedProgram) -> dict[Any, Any]:
    """Return what ExecuTorch decomposes first for XNNPACK (1.5.1, `_gen_edge_manager_for_partitioners`)."""
    from executorch.exir.program._program import _remove_invalid_ops_for_not_decompose
    from executorch.exir.tracer import _default_decomposition_table

    table = _default_decomposition_table()
    kept, _ = _partitioner().ops_to_not_decompose(program)
    for operator in _remove_invalid_ops_for_not_decompose(kept):
        table.pop(operator, None)
    return dict(table)


def _tagged(
    module: torch.nn.Module, model: BaseModel, lora: set[str], inside: set[str], lora_tag: str | None
) -> ExportedProgram:
    """Trace `module` once, and note for every constant which file it goes to; `lora` gets the names of the nodes whose
    constants fill slots, `inside` of those among them that stay in the program.

    ExecuTorch's exporter traces, edits the unlifted graph and traces the result again. Editing the traced graph itself
    gives the same program, byte for byte (seen on 1.5.1, float and quantized), in less time.
    """
    from lora_core.models.injection import slot_parameters

    program = _trace(module, model)
    signature = program.graph_signature
    parameters, slots = signature.inputs_to_parameters, slot_parameters(module)
    constants = {*parameters, *signature.inputs_to_buffers, *signature.inputs_to_lifted_tensor_constants}
    _name_as_unwrapped(program, module)
    filling = {name: _holder(path) for name, path in parameters.items() if _holder(path) in slots}
    lora |= {name for name, path in filling.items() if not _is_table(module, path)}
    inside |= filling.keys() - lora
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in constants:
            tag = lora_tag if node.name in lora else FOUNDATION_TAG
            # The mark that `delegate_external_constants_pass_unlifted` leaves on the unlifted graph.
            node.meta["custom"] = {**node.meta.get("custom", {}), "delegate_constant_tag": tag}
    return program


def _name_as_unwrapped(program: ExportedProgram, module: torch.nn.Module) -> None:
    """Call what a wrapped embedding holds as if it were not wrapped: kernels read it by name, all methods one name."""
    from lora_core.models.injection import wrapped_layers

    # Weights of linear layers have keys of their content.
    embeddings = [each for each in wrapped_layers(module) if not hasattr(each[2], "in_features")]
    names = {f"{inner}.": f"{path}.".lstrip(".") for path, inner, _ in embeddings}
    for spec in program.graph_signature.input_specs:
        old = spec.target or ""
        prefix = next((each for each in names if old.startswith(each)), None)
        if prefix is None:
            continue
        spec.target = names[prefix] + old.removeprefix(prefix)
        for held in (program.state_dict, program.constants):
            if old in held:
                held[spec.target] = held.pop(old)


def _is_table(module: torch.nn.Module, path: str) -> bool:
    """Say whether a part of a slot is read by rows: by a kernel that finds it in the program, by no delegate."""
    import torch

    return isinstance(module.get_submodule(path.rpartition(".")[0]), torch.nn.Embedding)


def _holder(path: str) -> str:
    """Return the parameter that a traced tensor at `path` is of: torch.export takes quantized ones apart."""
    return _UNWRAPPED.sub(r".\1", path)


def to_edge(
    methods: Mapping[str, torch.nn.Module],
    model: BaseModel,
    *,
    lora_tag: str | None = LORA_TAG,
    takes_slots: bool = False,
) -> EdgeMethods:
    """Trace `methods` (all with the example inputs of `model`) to ExecuTorch's edge dialect: most of a lowering's time.

    Constants of the base go to the foundation file, those that fill slots to the file that `lora_tag` names (None keeps
    them in the program); with `takes_slots` these are inputs of their method. Raises `ModelError` for a module that
    `torch.export` cannot trace.
    """
    from executorch.exir.program._program import _gen_edge_manager_for_partitioners

    lora: set[str] = set()
    inside: set[str] = set()
    with fast_lowering():
        programs = {name: _tagged(module, model, lora, inside, lora_tag) for name, module in methods.items()}
        # The first of the two steps of ExecuTorch 1.5.1's `to_edge_transform_and_lower`.
        manager = _gen_edge_manager_for_partitioners(
            {name: [_partitioner()] for name in programs},
            programs,
            _edge_config(),
            dict(model.metadata),
        )
    return EdgeMethods(
        manager=manager,
        lora=frozenset(lora),
        inside=frozenset(inside),
        lora_tag=lora_tag,
        takes_slots=takes_slots,
    )


def delegated(edge: EdgeMethods, known: KnownTensors | None = None) -> Lowered:
    """Give XNNPACK its parts of `edge` and emit the program; `edge` is of no use afterwards.

    With several methods, mutable buffers (the KV cache) are shared between them. Constants that `known` holds are left
    where they are; the data outside of the program refers to them.
    """
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
    from executorch.exir.program import _program
    from executorch.extension.llm.export.builder import ConvertToLinearPass

    from lora_core_xnnpack.lowering.float_conversions import write_conversions

    taken = {name: slot_inputs(each, edge.lora) for name, each in edge.programs.items()} if edge.takes_slots else {}
    with fast_lowering(known=known), ExitStack() as stack:
        write_conversions(stack)
        # Its first step is done.
        source = _taking_slots(edge) if edge.takes_slots else edge.manager
        Patches(stack).replace(_program, "_gen_edge_manager_for_partitioners", lambda *_: source)
        manager = to_edge_transform_and_lower(
            dict(edge.programs), partitioner=[_partitioner(takes_slots=edge.takes_slots)], compile_config=_edge_config()
        )
        manager = manager.transform([ConvertToLinearPass()]).to_executorch(
            ExecutorchBackendConfig(
                extract_delegate_segments=True,
                do_quant_fusion_and_const_prop=True,
                memory_planning_pass=MemoryPlanningPass(
                    alloc_graph_input=False, share_mutable_buffers=len(edge.programs) > 1
                ),
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
                external_constants=edge.file_of,
            )
        )
    return Lowered(manager=manager, slot_inputs=taken)


def _taking_slots(edge: EdgeMethods) -> EdgeProgramManager:
    from executorch.exir import EdgeProgramManager

    programs = {name: with_slots_as_inputs(program, edge.lora) for name, program in edge.programs.items()}
    return EdgeProgramManager(programs, edge.manager._config_methods, edge.manager.compile_config)


def lower(
    methods: Mapping[str, torch.nn.Module],
    model: BaseModel,
    *,
    lora_tag: str | None = LORA_TAG,
    takes_slots: bool = False,
) -> Lowered:
    """Lower `methods` into one program, as `to_edge` and `delegated` say."""
    return delegated(to_edge(methods, model, lora_tag=lora_tag, takes_slots=takes_slots))


def _partitioner(*, takes_slots: bool = False) -> XnnpackPartitioner:
    """Return XNNPACK's partitioner, which takes quantized layers too, of weights alone and of all, and conversions
    between float types.

    `_to_edge_and_lower_llama_xnnpack` puts XnnpackDynamicallyQuantizedPartitioner before it, which on 1.5.1 takes each
    float linear layer as a delegate of its own too.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    from lora_core_xnnpack.lowering.float_conversions import FloatConversionConfig
    from lora_core_xnnpack.lowering.weight_only import AnyLinearConfig

    known = [AnyLinearConfig if config is LinearConfig else config for config in ALL_PARTITIONER_CONFIGS]
    configs = [*known, FloatConversionConfig]
    return XnnpackPartitioner(configs=taking_inputs(configs) if takes_slots else configs)


def _edge_config() -> EdgeCompileConfig:
    from executorch.exir import EdgeCompileConfig

    return EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
