"""Run, for each partition, only those of XNNPACK's seventeen passes that can change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_core_xnnpack.lowering.fast.patching import Patches


def skip_idle_passes(patches: Patches) -> None:
    """Leave out the passes that look for operators a partition does not have.

    ExecuTorch 1.5.1 (`backends/xnnpack/_passes`) runs all of them on every delegate, and nearly each ends in a replay
    of the graph although it found nothing; two also export, on first use, the patterns they look for. A replay of an
    unchanged graph gives the same operators, order, shapes and debug handles, which is all that the serializer
    reads. A pass that is not listed here always runs. Drop when ExecuTorch's passes report `modified=False`.
    """
    from executorch.backends.xnnpack._passes import XNNPACKPassManager

    can_change = _conditions()
    original = XNNPACKPassManager.transform

    def transform(self: Any) -> Any:
        program = self.exported_program
        for each in self.passes:
            condition = can_change.get(each)
            nodes = [node for node in program.graph.nodes if node.op == "call_function"]
            if condition is None or any(condition(node) for node in nodes):
                program = original(XNNPACKPassManager(program, passes=[each]))
        return program

    patches.replace(XNNPACKPassManager, "transform", transform)


def _conditions() -> Mapping[type, Callable[[Any], bool]]:
    """Return, for each known pass, the test that a node must meet before the pass can do anything."""
    from executorch.backends.xnnpack import _passes as passes
    from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant
    from executorch.exir.dialects._ops import ops
    from executorch.exir.passes.dim_order_ops_registry import MemoryFormatOpsMap

    aten = ops.edge.aten

    def one_of(*targets: Any) -> Callable[[Any], bool]:
        return lambda node: node.target in targets

    batch_norm = one_of(aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default)
    return {
        passes.DimOrderOpsRevertPass: one_of(*MemoryFormatOpsMap),
        passes.ConvertToUpsampleBilinear2d: one_of(aten.upsample_bilinear2d.vec),
        passes.ConvertToLinearPass: becomes_linear,
        passes.PropagateCustomMetaPass: lambda node: is_quant(node) or is_dequant(node),
        passes.ConvertToSDPAPass: one_of(aten._softmax.default),  # both of its patterns hold one
        passes.ConstPropPass: lambda node: not node.all_input_nodes,
        passes.FuseBatchNormPass: batch_norm,
        passes.DecomposeBatchNorm: batch_norm,
        passes.FuseActivationPass: one_of(aten.relu.default, aten.hardtanh.default),
        passes.DecomposeConcatenate: one_of(aten.cat.default),
        passes.RemoveGetItemPass: one_of(aten.max_pool2d_with_indices.default, aten.max.dim),
        passes.Conv1dUnsqueezePass: one_of(aten.convolution.default),
        passes.PReLUReshapePass: one_of(aten._prelu_kernel.default),
        passes.RemoveRedundantCopyPass: one_of(aten._to_copy.default),
    }


def becomes_linear(node: Any) -> bool:
    """Say whether a node becomes a linear layer, is one that takes the place of a view beside it, or goes unused."""
    from executorch.backends.transforms.addmm_mm_to_linear import get_dqlinear_input, get_shape
    from executorch.exir.dialects._ops import ops

    aten = ops.edge.aten
    if node.target in (aten.mm.default, aten.addmm.default, aten.bmm.default):
        return True
    if node.target != aten.linear.default:
        return not node.users and not node.is_impure()
    given, weight = node.args[:2]
    views = [user for user in node.users if user.target == aten.view_copy.default]
    return get_dqlinear_input(given) not in (None, given) or any(
        list(get_shape(view)) == [*get_shape(given)[:-1], weight.meta["val"].shape[0]] for view in views
    )


def skip_idle_conversion(patches: Patches) -> None:
    """Leave a whole program as it is where no layer of it becomes a linear one.

    ExecuTorch's exporter has the pass run on programs whose layers are all delegated; it prints their code twice, for a
    debug message, and replays them. Drop when the pass reports `modified=False`.
    """
    from executorch.extension.llm.export.builder import ConvertToLinearPass
    from torch.fx.passes.infra.pass_base import PassResult

    convert = ConvertToLinearPass.call

    def convert_what_there_is(self: Any, graph_module: Any) -> Any:
        if any(becomes_linear(node) for node in graph_module.graph.nodes if node.op == "call_function"):
            return convert(self, graph_module)
        return PassResult(graph_module, False)

    patches.replace(ConvertToLinearPass, "call", convert_what_there_is)


def warn_of_no_workflow(patches: Patches) -> None:
    """Do not look for the callers of each partitioner.

    ExecuTorch 1.5.1 (`xnnpack_partitioner.py`) reads the source of every caller to see whether to warn of an old way
    to lower, which is not ours. Drop when it asks for their names alone.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    patches.replace(XnnpackPartitioner, "_check_if_called_from_to_backend", lambda _self: False)
