"""Cut the work that grows with partitions times nodes while delegates are cut out of the graph."""

from __future__ import annotations

import collections
import logging
from typing import Any

from lora_core.fast_lowering.patching import Patches


def describe_nothing(patches: Patches) -> None:
    """Do not print the whole graph for a debug message that nobody gets.

    ExecuTorch 1.5.1 (`exir/backend/backend_api.py`) formats the module, code and all, into an f-string for
    `logging.debug` once per partition: time quadratic in the number of layers. Drop when it logs lazily.
    """
    from executorch.exir.backend import backend_api
    from torch.fx import GraphModule

    create, describe = backend_api._create_partitions_in_graph_module, GraphModule.__str__
    silent = False

    def create_silently(*args: Any, **kwargs: Any) -> Any:
        nonlocal silent
        silent, before = not logging.getLogger().isEnabledFor(logging.DEBUG), silent
        try:
            return create(*args, **kwargs)
        finally:
            silent = before

    patches.replace(backend_api, "_create_partitions_in_graph_module", create_silently)
    patches.replace(GraphModule, "__str__", lambda self: "GraphModule" if silent else describe(self))


def sort_in_place(patches: Patches) -> None:
    """Sort the graph's nodes after each partition without copying all of them.

    torch 2.13.0's `legalize_graph` (`fx/passes/tools_common.py`) builds a new graph, and ExecuTorch calls it once per
    partition: time quadratic in the number of layers. This one gives the same order, of nodes and of each
    node's users (both steer the next sort), by moving the nodes. Drop when partitions are cut out in one go.
    """
    from executorch.exir import lowered_backend_module

    patches.replace(lowered_backend_module, "legalize_graph", _legalize_in_place)


def _legalize_in_place(module: Any) -> Any:
    graph = module.graph
    order = _topological_order(graph)
    if len(order) < len(graph.nodes):
        raise RuntimeError("The input graph has cycles.")
    root = graph._root
    for node in order:
        if root.prev is not node:
            root.prepend(node)
        node.users.clear()
    for node in order:
        for used in node._input_nodes:
            used.users.setdefault(node)
    module.recompile()
    return module


def _topological_order(graph: Any) -> list[Any]:
    """Return the order of torch's `legalize_graph`: breadth first, runtime assertions before data."""
    waiting = dict.fromkeys(graph.nodes, 0)
    for node in graph.nodes:
        for user in node.users:
            waiting[user] += 1
    queue = collections.deque(node for node, count in waiting.items() if count == 0)
    first, order = _prioritized(), []
    while queue:
        node = queue.popleft()
        order.append(node)
        for user in node.users:
            waiting[user] -= 1
            if waiting[user] == 0:
                early = user.op == "call_function" and user.target in first
                (queue.appendleft if early else queue.append)(user)
    return order


def _prioritized() -> list[Any]:
    import operator

    from torch import ops

    return [
        *(operator.add, operator.mul, operator.sub, operator.floordiv, operator.truediv, operator.mod),
        *(operator.le, operator.lt, operator.ge, operator.gt, operator.eq, operator.ne),
        ops.aten.sym_constrain_range.default,
        ops.aten.sym_constrain_range_for_size.default,
        ops.aten._assert_async.msg,
        ops.aten.scalar_tensor.default,
        ops.aten._assert_scalar.default,
    ]
