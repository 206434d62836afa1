"""Programs of fewer layers, cut out of a traced one: tracing is much of what a lowering costs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch.export import ExportedProgram, ExportGraphSignature
    from torch.export.exported_program import ModuleCallEntry
    from torch.export.graph_signature import InputSpec
    from torch.fx import Graph, Node
    from torch.utils._pytree import TreeSpec

Narrow = Callable[[Any], Any]
"""Returns what a method of fewer layers takes or gives, with the leaves that it still has of what the deeper one does:
nested tuples, lists and dictionaries."""
_USERS = frozenset({"USER_INPUT", "USER_OUTPUT"})


class NotAChainError(Exception):
    """The layers are not one after the other, each of what the one before it gives."""


def cut(program: ExportedProgram, blocks: str, keep: Sequence[int], narrow: Narrow | None = None) -> ExportedProgram:
    """Return an edge program with the layers `keep` only, of those at the path `blocks`; `program` stays as it is.

    The result is what tracing such a module gives, but for the names of nodes. `keep` rises, and has the first layer.
    Where a method takes or gives something for each layer, `narrow` leaves out what is of layers that are not left.
    Raises `NotAChainError` if a layer takes anything from other layers but the one tensor that the layer before it
    gives.
    """
    from torch.export import ExportGraphSignature

    graph = copied(program.graph)
    layers, paths, call = _Layers.of(graph, blocks), _Paths(blocks=blocks, keep=keep), _Call.of(program, narrow)
    signature = program.graph_signature
    idle = {node for node in graph.find_nodes(op="placeholder") if not node.users}
    results = call.given.among(zip(graph.output_node().args[0], signature.output_specs, strict=True))
    outputs = [(node, spec) for node, spec in results if paths.has(spec.target)]
    graph.output_node().args = (tuple(node for node, _ in outputs),)
    layers.keep(keep)
    graph.eliminate_dead_code()
    placed = list(zip(graph.find_nodes(op="placeholder"), signature.input_specs, strict=True))
    _use_what_is_kept(placed, paths)
    taken = {node for node, _ in call.taken.among(placed)}
    inputs, used = [], set[str]()
    for node, spec in placed:
        if node in taken and (_is_users(spec) or node.users or (node in idle and paths.has(spec.target))):
            inputs.append(replace(spec, target=paths.of(spec.target)))
            used.add(str(spec.target))
        elif node.users:
            raise NotAChainError(f"{node.name} belongs to a layer that is not left, and is used by one that is")
        else:
            graph.erase_node(node)
    kept = zip(graph.output_node().args[0], outputs, strict=True)
    specs = [
        replace(spec, arg=replace(spec.arg, name=node.name), target=paths.of(spec.target)) for node, (_, spec) in kept
    ]
    return assembled(
        program,
        graph,
        ExportGraphSignature(inputs, specs),
        call.graph,
        state_dict=paths.among(program.state_dict, used),
        constants=paths.among(program.constants, used),
    )


def assembled(
    program: ExportedProgram,
    graph: Graph,
    signature: ExportGraphSignature,
    calls: Sequence[ModuleCallEntry],
    *,
    state_dict: dict[str, Any],
    constants: dict[str, Any],
) -> ExportedProgram:
    """Return `program` with another graph, and what goes with that; handles number the nodes that there are."""
    from executorch.exir.passes.debug_handle_generator_pass import DebugHandleGeneratorPass
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    module = GraphModule(program.graph_module, graph)
    module.meta.update(program.graph_module.meta)
    DebugHandleGeneratorPass()(module)
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=signature,
        state_dict=state_dict,
        range_constraints=copy.copy(program.range_constraints),
        module_call_graph=list(calls),
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )


def copied(graph: Graph) -> Graph:
    """Return a graph of its own with the same names and values."""
    from torch.fx import Graph

    new = Graph()
    nodes: dict[Node, Node] = {}
    output = new.graph_copy(graph, nodes)
    new.output(output).meta = copy.copy(graph.output_node().meta)
    new.set_codegen(copy.copy(graph._codegen))
    return new


@attrs.frozen(kw_only=True)
class _Users:
    """The inputs, or outputs, that the caller knows of: the numbers of those that are left."""

    left: Collection[int]

    def among(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Yield those of `pairs` of a node and its specification that are left."""
        number = -1
        for node, spec in pairs:
            number += _is_users(spec)
            if not _is_users(spec) or number in self.left:
                yield node, spec


def _is_users(spec: Any) -> bool:
    return spec.kind.name in _USERS


@attrs.frozen(kw_only=True)
class _Call:
    """How the shorter method is called, and what it takes and gives of what the deeper one does."""

    graph: list[ModuleCallEntry]
    taken: _Users
    given: _Users

    @classmethod
    def of(cls, program: ExportedProgram, narrow: Narrow | None) -> _Call:
        whole, *others = program.module_call_graph
        signature: Any = whole.signature
        in_spec, taken = _narrowed(signature.in_spec, narrow)
        out_spec, given = _narrowed(signature.out_spec, narrow)
        arguments = copy.deepcopy({"inputs": signature.inputs, "outputs": signature.outputs})  # passes rename them
        own = replace(signature, in_spec=in_spec, out_spec=out_spec, **arguments)
        graph = [replace(whole, signature=own), *copy.deepcopy(others)]
        return cls(graph=graph, taken=taken, given=given)


def calls_of(program: ExportedProgram) -> list[ModuleCallEntry]:
    """Return how a method is called, for another with the same inputs and outputs."""
    return _Call.of(program, None).graph


def _narrowed(spec: TreeSpec, narrow: Narrow | None) -> tuple[TreeSpec, _Users]:
    """Return a structure with what is left of it, and the numbers of its leaves in the old one."""
    from torch.utils import _pytree as pytree

    leaves = range(spec.num_leaves)
    if narrow is None:
        return spec, _Users(left=leaves)
    left, new = pytree.tree_flatten(narrow(pytree.tree_unflatten(leaves, spec)))
    if left != sorted(left):
        raise NotAChainError("what a method of fewer layers takes stands in another order")
    return new, _Users(left=left)


def _use_what_is_kept(inputs: Sequence[tuple[Node, InputSpec]], paths: _Paths) -> None:
    """Let what layers share be read where the last layer that is left has it.

    torch 2.13.0 has an input for each of its places, and reads that of the last layer. Raises `NotAChainError` if
    two inputs are read that would have one path.
    """
    kept = {paths.of(spec.target): node for node, spec in inputs if spec.target is not None and paths.has(spec.target)}
    for node, spec in inputs:
        other = kept.get(paths.of(spec.target)) if node.users and not paths.has(spec.target) else None
        if other is not None:
            if other.users:
                raise NotAChainError(f"{spec.target} and {other.name} are used by the same layers")
            node.replace_all_uses_with(other)


@attrs.frozen(kw_only=True)
class _Paths:
    """What tensors of a module are called when it has the layers `keep` only."""

    blocks: str
    keep: Sequence[int]

    def has(self, path: str | None) -> bool:
        """Say whether the module still has what was at `path`; None is no tensor of the module."""
        number = _number(path, self.blocks)
        return number is None or number in self.keep

    def of(self, path: str | None) -> str | None:
        """Return the new path of what was at `path`; if that layer is not left, the path in the last one before it."""
        number = _number(path, self.blocks)
        if path is None or number is None:
            return path
        place = max(new for new, old in enumerate(self.keep) if old <= number)
        return f"{self.blocks}.{place}{path.removeprefix(f'{self.blocks}.{number}')}"

    def among(self, tensors: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
        """Return what the module still has of `tensors`, and what layers share of them (`used`), by its new paths."""
        ours = {path: tensor for path, tensor in tensors.items() if self.has(path) or path in used}
        return {str(self.of(path)): tensor for path, tensor in ours.items()}


def _number(path: str | None, blocks: str) -> int | None:
    """Return the number of the layer that something at `path` is in; None if it is in none."""
    if path is None or not path.startswith(f"{blocks}."):
        return None
    return int(path.removeprefix(f"{blocks}.").partition(".")[0])


@attrs.frozen(kw_only=True)
class _Layers:
    """The layer of each node of a graph that is in one, and the node of each layer that the next one takes."""

    graph: Graph
    of_node: Mapping[Node, int | None]
    ends: Mapping[int, Node]

    @classmethod
    def of(cls, graph: Graph, blocks: str) -> _Layers:
        """Raise `NotAChainError` if the layers are no chain."""
        of_node = {node: _layer(node, blocks) for node in graph.nodes if node.op == "call_function"}
        numbers = sorted({number for number in of_node.values() if number is not None})
        ends: dict[int, Node] = {}
        for node, number in of_node.items():
            after = {of_node.get(user) for user in node.users if user.op != "output"} - {number}
            if number is None or not after:
                continue
            if after != {number + 1 if number < numbers[-1] else None} or number in ends:
                raise NotAChainError(f"layer {number} gives more than one tensor to the next")
            ends[number] = node
        if not numbers or numbers != list(range(len(numbers))) or ends.keys() != set(numbers):
            raise NotAChainError("not every layer gives a tensor to the next")
        return cls(graph=graph, of_node=of_node, ends=ends)

    def keep(self, numbers: Sequence[int]) -> None:
        """Let what follows other layers than `numbers` take what the layer before them gives, and take them out."""
        others = sorted(self.ends.keys() - set(numbers))
        for number in others:
            before = max(each for each in numbers if each < number)
            if described(self.ends[before]) != described(self.ends[number]):
                raise NotAChainError(f"layer {number} gives another kind of tensor than layer {before}")
            self.ends[number].replace_all_uses_with(self.ends[before])
        for node in reversed(self.graph.nodes):
            if self.of_node.get(node) in others:
                if node.users:
                    raise NotAChainError(f"{node.name} is a result of the method")
                self.graph.erase_node(node)


def _layer(node: Node, blocks: str) -> int | None:
    """Return the number of the layer that the node was traced in."""
    paths = (path for path, _ in node.meta.get("nn_module_stack", {}).values())
    return next((number for path in paths if (number := _number(path, blocks)) is not None), None)


def described(node: Node) -> tuple[str, str]:
    """Return the shape and the type of what a node gives."""
    value = node.meta["val"]
    return str(value.shape), str(value.dtype)
