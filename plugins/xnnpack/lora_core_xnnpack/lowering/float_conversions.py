# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Conversions between float16 and float32 inside of XNNPACK's delegates.

ExecuTorch 1.5.1's partitioner leaves them to portable kernels (`ToDimOrderCopyConfig` refuses another type), so that
each would end a delegate. Its serializer has a node for them, `XNNConvert`, which it writes for quantized tensors, and
its runtime hands that to `xnn_define_convert`, which knows both directions.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.backends.xnnpack._passes.remove_redundant_copy_pass import RemoveRedundantCopyPass
from executorch.backends.xnnpack.operators import node_visitor
from executorch.backends.xnnpack.partition.config.generic_node_configs import GenericNodePartitionerConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNConvert, XNNGraph, XNode
from executorch.backends.xnnpack.utils.utils import get_input_node
from executorch.exir.dialects._ops import ops as exir_ops
from torch.export import ExportedProgram

from lora_core.fast_lowering.patching import Patches

_FLOATS = frozenset((torch.float16, torch.float32))
# ExecuTorch 1.5.1's registering decorator returns nothing, so the class has no other name.
_COPIES: Any = node_visitor._node_visitor_dict["aten._to_copy.default"]


class FloatConversionConfig(GenericNodePartitionerConfig):  # type: ignore[misc]  # ExecuTorch is untyped here
    """Takes copies of float16 as float32 and the reverse."""

    target_name = "_to_copy.default"

    def check_constraints(self, node: torch.fx.Node, ep: ExportedProgram) -> bool:
        """Say whether `node` is one that changes the type, and nothing else."""
        converts = node.kwargs.keys() <= {"dtype"} and _types(node) == _FLOATS
        return converts and bool(self.check_common_constraints(node, ep))

    def supported_precision_types(self) -> list[ConfigPrecisionType]:
        """Return that of float computation."""
        return [ConfigPrecisionType.FP32]


class FloatConversion(_COPIES):  # type: ignore[misc]  # ExecuTorch is untyped here
    """Writes a conversion as `XNNConvert`, and other copies as ExecuTorch does."""

    def define_node(
        self, node: torch.fx.Node, xnn_graph: XNNGraph, vals_to_ids: dict[Any, int], debug_handle: int
    ) -> None:
        """Add `node` to the graph."""
        if _types(node) != _FLOATS:
            super().define_node(node, xnn_graph, vals_to_ids, debug_handle)
            return
        source = get_input_node(node, 0)
        for each in (source, node):
            self.define_tensor(each, xnn_graph, vals_to_ids)
        convert = XNNConvert(input_id=vals_to_ids[source], output_id=vals_to_ids[node], flags=0)
        xnn_graph.xnodes.append(XNode(xnode_union=convert, debug_handle=debug_handle))


def write_conversions(stack: ExitStack) -> None:
    """Have ExecuTorch's passes keep conversions and its serializer write them, until `stack` is left.

    Two passes of 1.5.1 take every copy for a change of memory format.
    """
    patches = Patches(stack)
    known = node_visitor._node_visitor_dict
    patches.replace(node_visitor, "_node_visitor_dict", {**known, FloatConversion.target: FloatConversion})
    tag = ChannelsLastTaggedReshapePass.tag_node
    remove = RemoveRedundantCopyPass._try_remove_regular_redundant_to_copy

    def tag_other_copies(self: Any, node: torch.fx.Node) -> None:
        if not _converts(node):
            tag(self, node)
        elif self.is_nhwc_node(node.args[0]):
            self.mark_as_nhwc_node(node)

    def remove_other_copies(self: Any, node: torch.fx.Node, graph: torch.fx.Graph) -> Any:
        return False if _converts(node) or _converts(node.args[0]) else remove(self, node, graph)

    patches.replace(ChannelsLastTaggedReshapePass, "tag_node", tag_other_copies)
    patches.replace(RemoveRedundantCopyPass, "_try_remove_regular_redundant_to_copy", remove_other_copies)


def _converts(node: Any) -> bool:
    return node.target == exir_ops.edge.aten._to_copy.default and _types(node) == _FLOATS


def _types(node: torch.fx.Node) -> frozenset[torch.dtype]:
    return frozenset((get_input_node(node, 0).meta["val"].dtype, node.meta["val"].dtype))
