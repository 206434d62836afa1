"""Skip a second decomposition of a graph that the first one left nothing to decompose in."""

from __future__ import annotations

from typing import Any

from lora_core.fast_lowering.patching import Patches

_MARK = "_fast_lowering_decomposed"


def decompose_once(patches: Patches) -> None:
    """Return a copy instead of retracing when `run_decompositions` has nothing to do.

    ExecuTorch 1.5.1 (`exir/program/_program.py`) decomposes each program once before and twice for each partitioner.
    A graph that `run_decompositions` has already made functional, and that holds no operator of the table,
    comes out of another tracing as it went in: ExecuTorch itself says so where it skips one of
    these calls. Operators that it renamed to keep them (`EDGE_DO_NOT_DECOMP`) are in no table. The copy is needed
    because callers edit the graph they get back. Drop when ExecuTorch decomposes once.
    """
    import torch
    from torch.export import ExportedProgram

    # In every table, but its rule keeps it where the size is symbolic, and the first run removed the static ones.
    fixed_points = {torch.ops.aten.sym_size.int}
    original = ExportedProgram.run_decompositions

    def run_decompositions(self: Any, decomp_table: Any = None, decompose_custom_triton_ops: bool = False) -> Any:
        if decomp_table is not None and getattr(self, _MARK, False):
            table = dict(decomp_table)
            if not _any_target(self.graph_module, table.keys() - fixed_points):
                return _marked(_copied(self))
        return _marked(original(self, decomp_table, decompose_custom_triton_ops))

    patches.replace(ExportedProgram, "run_decompositions", run_decompositions)


def _marked(program: Any) -> Any:
    setattr(program, _MARK, True)
    return program


def _any_target(graph_module: Any, targets: Any) -> bool:
    from torch.fx import GraphModule

    modules = (module for module in graph_module.modules() if isinstance(module, GraphModule))
    return any(node.op == "call_function" and node.target in targets for m in modules for node in m.graph.nodes)


def _copied(program: Any) -> Any:
    """Return `program` with a graph of its own; tensors and node values are shared."""
    import copy

    from torch.export import ExportedProgram
    from torch.fx import Graph, GraphModule

    old = program.graph_module
    graph = Graph()
    nodes: dict[Any, Any] = {}
    output = graph.graph_copy(old.graph, nodes)
    for before, after in nodes.items():
        after.name = (
            before.name
        )  # fx calls a new node `input_1` that is named like a builtin, and the signature does not
    if output is not None:
        old_output = old.graph.output_node()
        graph.output(output).meta = copy.copy(old_output.meta)
    graph.set_codegen(copy.copy(old.graph._codegen))
    module = GraphModule(old, graph)
    module.meta.update(old.meta)
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=copy.copy(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )
