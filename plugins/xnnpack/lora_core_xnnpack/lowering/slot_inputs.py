"""Parts of slots as inputs of a method, in place of constants of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SlotInput = tuple[str, str]
"""The path of a slot's layer in the module, and the part."""
_PARTS = {".lora_a.weight": "a", ".lora_b.weight": "b"}
"""How the names of parameters of a `LoraLinear` end, and the parts that they hold."""


def with_slots_as_inputs(program: ExportedProgram, slots: Collection[str]) -> ExportedProgram:
    """Return an edge program that takes the constants of the nodes `slots` as inputs, behind those that it takes.

    They stand in the order in which `slot_inputs` tells them: that of the module's parameters. The structure of inputs
    that the program tells stays that of the module's own, so that it is the same for models of any depth; ExecuTorch's
    runtime reads none of it.
    """
    import torch
    from torch.export import ExportedProgram, ExportGraphSignature
    from torch.export.graph_signature import InputKind, TensorArgument
    from torch.fx import GraphModule

    from lora_core.fast_lowering.cutting import copied

    graph = copied(program.graph)
    placed = list(zip(graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True))
    moved = [(node, spec) for node, spec in placed if node.name in slots]
    last = placed[-1][0]
    for node, _ in moved:
        if node is not last:
            last.append(node)
        last = node
        node.meta = {key: value for key, value in node.meta.items() if key != "custom"}  # which file it goes to
    specs = [spec for node, spec in placed if node.name not in slots]
    specs += [
        replace(spec, kind=InputKind.USER_INPUT, arg=TensorArgument(name=node.name), target=None, persistent=None)
        for node, spec in moved
    ]
    gone = {spec.target for _, spec in moved}
    module = GraphModule(program.graph_module, graph)
    module.meta.update(program.graph_module.meta)
    state: dict[str, torch.Tensor] = {name: held for name, held in program.state_dict.items() if name not in gone}
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=ExportGraphSignature(specs, list(program.graph_signature.output_specs)),
        state_dict=state,
        range_constraints=dict(program.range_constraints),
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def slot_inputs(program: ExportedProgram, slots: Collection[str]) -> Sequence[SlotInput]:
    """Return which parts of slots the nodes `slots` of an edge program are, in the program's order."""
    parameters = program.graph_signature.inputs_to_parameters
    found = []
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in slots:
            path = parameters[node.name]
            end = next(end for end in _PARTS if path.endswith(end))
            found.append((path.removesuffix(end), _PARTS[end]))
    return found


def taking_inputs(configs: Sequence[type]) -> list[type]:
    """Return what XNNPACK's partitioner is told to take, with linear layers whose weights are inputs too.

    ExecuTorch 1.5.1's takes none (`gemm_configs.py`), though its serializer and XNNPACK do: the layer would be taken
    apart, and its matrix product run outside of delegates, each of which it ends.
    """
    from executorch.backends.xnnpack.utils.utils import get_input_node, is_param_node

    from lora_core_xnnpack.lowering.weight_only import AnyLinearConfig

    class LinearOfInput(AnyLinearConfig):
        def _get_weight_deps(self, node: Any, ep: Any, precision: Any) -> tuple[bool, list[Any]]:
            weight = get_input_node(node, self.weight_idx)
            if weight.op == "placeholder" and not is_param_node(ep, weight):
                return True, []
            found: tuple[bool, list[Any]] = super()._get_weight_deps(node, ep, precision)
            return found

    return [LinearOfInput if config is AnyLinearConfig else config for config in configs]
