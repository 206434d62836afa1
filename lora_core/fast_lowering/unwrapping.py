"""Programs of bare layers, taken out of those of wrapped ones: tracing is much of what a lowering costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.fast_lowering.cutting import assembled, calls_of, copied, described

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node


class NotBesideError(Exception):
    """What a layer is wrapped in does more than to take the layer's one result and give another in its place."""


def unwrapped(program: ExportedProgram, wrapped: Mapping[str, str]) -> ExportedProgram:
    """Return an edge program without what layers are wrapped in; `program` stays as it is.

    `wrapped` has for the path of each wrapper that of the layer inside. The result is what tracing the module without
    wrappers gives, but for the names of nodes. Raises `NotBesideError` if that cannot be had by leaving nodes out.
    """
    from torch.export import ExportGraphSignature

    graph = copied(program.graph)
    for outer, inner in wrapped.items():
        _leave_out(graph, outer, inner)
    inputs = []
    signature = program.graph_signature
    for node, spec in zip(graph.find_nodes(op="placeholder"), signature.input_specs, strict=True):
        if not _is_wrapping(spec.target, wrapped):
            inputs.append(replace(spec, target=_bare(spec.target, wrapped)))
        elif node.users:
            raise NotBesideError(f"{spec.target} is used outside of the layer that it is of")
        else:
            graph.erase_node(node)
    results = zip(graph.output_node().args[0], signature.output_specs, strict=True)
    outputs = [
        replace(spec, arg=replace(spec.arg, name=node.name), target=_bare(spec.target, wrapped))
        for node, spec in results
    ]
    return assembled(
        program,
        graph,
        ExportGraphSignature(inputs, outputs),
        calls_of(program),
        state_dict=_among(program.state_dict, wrapped),
        constants=_among(program.constants, wrapped),
    )


@attrs.frozen(kw_only=True)
class _Wrapper:
    """The nodes of one wrapper, and those of the layer inside, in their order."""

    around: list[Node]
    inside: list[Node]

    @classmethod
    def of(cls, graph: Graph, outer: str, inner: str) -> _Wrapper:
        around: list[Node] = []
        inside: list[Node] = []
        for node in graph.nodes:
            paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
            if node.op == "call_function" and outer in paths:
                (inside if inner in paths else around).append(node)
        return cls(around=around, inside=inside)


def _leave_out(graph: Graph, outer: str, inner: str) -> None:
    """Let what takes the wrapper's result take that of the layer inside, and take the wrapper's nodes out."""
    found = _Wrapper.of(graph, outer, inner)
    own = {*found.around, *found.inside}
    given = [node for node in own if any(user not in own for user in node.users)]
    results = [node for node in found.inside if any(user not in found.inside for user in node.users)]
    if len(given) != 1 or len(results) != 1 or given[0] not in found.around:
        raise NotBesideError(f"{outer} gives more than one result, or that of {inner}")
    (wide,), (bare,) = given, results
    if described(wide) != described(bare):
        raise NotBesideError(f"{outer} gives another kind of tensor than {inner}")
    wide.replace_all_uses_with(bare, delete_user_cb=lambda user: user not in own)
    for node in reversed(found.around):
        if node.users:
            raise NotBesideError(f"{node.name} is used by {inner}")
        graph.erase_node(node)


def _is_wrapping(path: str | None, wrapped: Mapping[str, str]) -> bool:
    """Say whether something at `path` is a wrapper's, and not of the layer inside; None is no tensor of the module."""
    return path is not None and any(
        path.startswith(f"{outer}.") and not path.startswith(f"{inner}.") for outer, inner in wrapped.items()
    )


def _bare(path: str | None, wrapped: Mapping[str, str]) -> str | None:
    """Return where the module without wrappers has what was at `path`."""
    for outer, inner in wrapped.items():
        if path is not None and path.startswith(f"{inner}."):
            return outer + path.removeprefix(inner)
    return path


def _among(tensors: Mapping[str, Any], wrapped: Mapping[str, str]) -> dict[str, Any]:
    """Return what the module without wrappers has of `tensors`, by its paths there."""
    ours = {path: tensor for path, tensor in tensors.items() if not _is_wrapping(path, wrapped)}
    return {str(_bare(path, wrapped)): tensor for path, tensor in ours.items()}
