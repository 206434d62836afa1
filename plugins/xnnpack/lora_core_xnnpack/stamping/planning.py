# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Memory of a method: what ExecuTorch plans for, and its own planner run on that again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from executorch.exir.memory_planning import MemoryPlanningAlgorithmSuite, collect_specs_from_nodes
from executorch.exir.tensor import ALIGNMENT, TensorSpec

from lora_core_xnnpack.stamping.elements import NotStampableError

ARENA = 1
"""The memory that is planned; what methods share (2) and constants (0) need no planner."""
_XNNPACK_PADDING = 64  # `apply_algo` of ExecuTorch 1.5.1 adds it for XNNPACK, which reads past ends


@attrs.frozen(kw_only=True)
class Planned:
    """A piece of memory: its size in bytes, and the nodes between which it is needed, both included."""

    size: int
    first: int
    last: int


@attrs.frozen(kw_only=True)
class Requests:
    """What a method asks of the planner, in the planner's order, and for each of its tensors which of these it is in.

    `places` are the numbers of pieces for tensors in planned memory, in the order in which the program lists them.
    """

    pieces: tuple[Planned, ...]
    places: tuple[int, ...]


def requests(graph_module: Any, signature: Any, *, shared: bool) -> Requests:
    """Return what ExecuTorch's memory planning asked for the method; `shared`: mutable buffers are planned apart."""
    specs = list(
        collect_specs_from_nodes(
            graph_module.graph.nodes,
            signature,
            do_assertion=False,
            ignore_graph_input=True,
            ignore_graph_output=False,
            ignore_mutable_buffers=shared,
        )
    )
    if any(spec.storage_base is not None or spec.mem_id != ARENA or _root(spec) is not spec for spec in specs):
        raise NotStampableError("memory is planned in a way that is not known here")
    numbers = {id(spec): number for number, spec in enumerate(specs)}
    pieces = tuple(Planned(size=spec.nbytes(), first=spec.lifetime[0], last=spec.lifetime[1]) for spec in specs)
    places = []
    for spec in _emitted(graph_module.graph.nodes):
        if spec.mem_id == ARENA:
            number = numbers.get(id(_root(spec)))
            if number is None:
                raise NotStampableError("a tensor's memory was not planned")
            places.append(number)
    return Requests(pieces=pieces, places=tuple(places))


def piece(size: object, lifetime: tuple[int, ...]) -> Planned:
    """Return a piece of memory; raises `NotStampableError` for one that nothing can need."""
    first, last = lifetime
    if not (isinstance(size, int) and 0 <= first <= last):
        raise NotStampableError("memory is needed for less than no time")
    return Planned(size=size, first=first, last=last)


def plan(pieces: Sequence[Planned]) -> tuple[tuple[int, ...], int]:
    """Run ExecuTorch's planner; returns the offset of each piece, and the bytes of all."""
    specs = [_spec(piece) for piece in pieces]
    module = torch.fx.GraphModule({}, torch.fx.Graph())
    sizes = MemoryPlanningAlgorithmSuite()(ALIGNMENT, specs, module, None, _XNNPACK_PADDING)
    return tuple(spec.mem_offset for spec in specs), sizes[ARENA] if len(sizes) > ARENA else 0


def _spec(piece: Planned) -> TensorSpec:
    spec = TensorSpec(torch.uint8, torch.Size([piece.size]))
    spec.lifetime = [piece.first, piece.last]
    return spec


def _emitted(nodes: Any) -> Iterator[Any]:
    """Yield each spec of planned memory once, in the order in which the emitter gives it a value."""
    seen: set[int] = set()
    for node in nodes:
        # The output node also says what buffers are written, which the emitter leaves out.
        specs = None if node.op == "output" else node.meta.get("spec")
        for spec in specs if isinstance(specs, list | tuple) else (specs,):
            if isinstance(spec, TensorSpec) and id(spec) not in seen:
                seen.add(id(spec))
                if spec.mem_id is not None and spec.mem_offset is not None:
                    yield spec


def _root(spec: Any) -> Any:
    """Return the spec whose memory `spec` is a view of."""
    while (base := getattr(spec, "_base", None)) is not None:
        spec = base
    return spec
