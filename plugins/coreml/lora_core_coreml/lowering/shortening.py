# ruff: noqa: TID253  this module is imported only while exporting, with torch already loaded
"""Methods of static attention with fewer layers, cut out of traced ones: tracing is half of what a lowering costs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch.export import ExportedProgram, ExportGraphSignature
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from lora_core.fast_lowering.cutting import cut

BLOCKS = "layers"
# How ExecuTorch's static attention names the cache of a layer in structures, and torch.export a tensor of one.
_KEY = re.compile(r"\bl(\d+)(?=,h\d+)")
_INPUT = re.compile(rf"(?<=_{BLOCKS}_)(\d+)(?=_)|(?<=_l)(\d+)(?=_h\d+$)")
_COUNT = re.compile(r"_\d+$")


def shortened(program: ExportedProgram, keep: Sequence[int]) -> ExportedProgram:
    """Return the edge program `program` with the layers `keep` only, as `cut` says, and nodes called as if traced so.

    CoreML's functions have the names of inputs, outputs and weights. torch.export calls inputs by their places in the
    module or in what it takes, and ExecuTorch's passes number operators of one kind from first to last.
    """
    return _renamed(cut(program, BLOCKS, keep, _narrowing(keep)), _naming(keep))


def _narrowing(keep: Sequence[int]) -> Callable[[Any], Any]:
    def moved(key: Any) -> Any:
        return _KEY.sub(lambda found: f"l{keep.index(int(found[1]))}", key) if isinstance(key, str) else key

    def narrow(structure: Any) -> Any:
        if isinstance(structure, dict):
            return {moved(key): narrow(value) for key, value in structure.items() if _left(key, keep)}
        return type(structure)(map(narrow, structure)) if isinstance(structure, list | tuple) else structure

    return narrow


def _left(key: Any, keep: Sequence[int]) -> bool:
    found = _KEY.search(key) if isinstance(key, str) else None
    return found is None or int(found[1]) in keep


def _naming(keep: Sequence[int]) -> Callable[[Node], str]:
    def place(found: re.Match[str]) -> str:
        number = int(found[1] or found[2])
        return str(max(new for new, old in enumerate(keep) if old <= number))

    def name(node: Node) -> str:
        # What an operator's name has behind its kind, `create_node` counts anew.
        return _INPUT.sub(place, node.name) if node.op == "placeholder" else _COUNT.sub("", node.name)

    return name


def _renamed(program: ExportedProgram, name: Callable[[Node], str]) -> ExportedProgram:
    """Return `program` with a graph whose nodes are called as `name` says, numbered if several are called alike."""
    graph, made = Graph(), dict[Node, Node]()
    for node in program.graph.nodes:
        args, kwargs = (map_arg(given, made.__getitem__) for given in (node.args, node.kwargs))
        new = made[node] = graph.create_node(node.op, node.target, args, kwargs, name(node), node.type)
        new.meta = copy.copy(node.meta)
        if node.op == "placeholder":
            new.name = new.target = name(node)
    graph.set_codegen(copy.copy(program.graph._codegen))
    module = GraphModule(program.graph_module, graph)
    module.meta.update(program.graph_module.meta)
    names = {before.name: after.name for before, after in made.items()}
    signature = program.graph_signature
    inputs, outputs = (
        [replace(spec, arg=replace(spec.arg, name=names[spec.arg.name])) for spec in specs]
        for specs in (signature.input_specs, signature.output_specs)
    )
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )
