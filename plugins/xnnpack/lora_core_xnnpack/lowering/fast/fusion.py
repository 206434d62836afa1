"""Look for patterns of quantization only where something is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_core_xnnpack.lowering.fast.patching import Patches

NAMESPACES = frozenset({"quantized_decomposed", "torchao"})
"""Of the operators of which every pattern has one."""


def skip_idle_patterns(patches: Patches) -> None:
    """Make none of the patterns of quantized operators for a graph that has no such operator.

    ExecuTorch 1.5.1 (`exir/passes/quant_fusion_pass.py`) traces some twenty of them for each program. Drop when it
    traces them once.
    """
    from executorch.exir.passes import quant_fusion_pass

    made = quant_fusion_pass.get_quant_patterns_and_replacements
    call = quant_fusion_pass.QuantFusionPass.call
    idle = [False]

    def call_and_tell(self: Any, graph_module: Any) -> Any:
        idle[0] = not any(map(_quantizes, graph_module.graph.nodes))
        return call(self, graph_module)

    def patterns(node_value_dict: Any) -> Sequence[Any]:
        return () if idle[0] else made(node_value_dict)

    patches.replace(quant_fusion_pass.QuantFusionPass, "call", call_and_tell)
    patches.replace(quant_fusion_pass, "get_quant_patterns_and_replacements", patterns)


def _quantizes(node: Any) -> bool:
    return node.op == "call_function" and getattr(node.target, "namespace", None) in NAMESPACES
