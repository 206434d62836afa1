# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Linear layers with int8 weights and float inputs, in XNNPACK's delegates.

ExecuTorch 1.5.1's partitioner takes quantized weights for a sign of quantized inputs (`GEMMConfig._detect_precision`),
and leaves the layer alone if they are not. Its serializer writes such a layer all the same, and XNNPACK has kernels for
it (`xnn_create_fully_connected_nc_f32_qc8w`): a scale for each row, widened as the products are summed.
"""

from __future__ import annotations

from typing import Any

import torch
from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_per_channel_group, tag_as_implicit_q_dq
from executorch.backends.xnnpack.utils.utils import get_input_node
from torch.export import ExportedProgram


class AnyLinearConfig(LinearConfig):  # type: ignore[misc]  # ExecuTorch is untyped here
    """ExecuTorch's, which takes layers too whose weights alone are quantized, by row."""

    def get_deps(self, node: torch.fx.Node, ep: ExportedProgram) -> tuple[bool, list[torch.fx.Node]]:
        """Return whether `node` is taken, and what comes with it."""
        weight: Any = get_input_node(node, self.weight_idx)
        alone = is_dequant(weight) and not is_dequant(get_input_node(node, self.act_idx))
        if not alone or len(node.all_input_nodes) > 2 or _in_groups(weight):
            found: tuple[bool, list[torch.fx.Node]] = super().get_deps(node, ep)
            return found
        taken, nodes = self._get_weight_deps(node, ep, ConfigPrecisionType.DYNAMIC_QUANT)
        tag_as_implicit_q_dq(weight)
        return taken, nodes


def _in_groups(weight: Any) -> bool:
    """Say whether rows of a weight have several scales: ExecuTorch calls one for each row a group too."""
    scales = weight.args[2].meta["val"]
    return bool(is_per_channel_group(weight) and scales.dim() > 1 and scales.shape[1] > 1)
