"""Graph breaks: operators that CoreML does not take, so that a program is cut into several packages there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch  # noqa: TID253 - this module is only imported to lower a model

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager

T = TypeVar("T")

_LIBRARY = torch.library.Library("lora_core_coreml", "DEF")
_LIBRARY.define("graph_break(Tensor x) -> Tensor")


@torch.library.impl(_LIBRARY, "graph_break", "CompositeExplicitAutograd")  # type: ignore[untyped-decorator]
def _graph_break(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


class BlockWithBreak(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A block with a graph break before or after it."""

    def __init__(self, block: torch.nn.Module, *, before: bool) -> None:
        super().__init__()
        self.block = block
        self.before = before

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block, with its tensor arguments or its tensor results passed through a break."""
        if self.before:
            return self.block(*map(_pass, args), **kwargs)
        return tuple(map(_pass, self.block(*args, **kwargs)))


def add(module: torch.nn.Module, paths: Mapping[str, str]) -> dict[str, str]:
    """Cut before the first and after the last block of `module`; return the `paths` of layers (by name) as they are
    then.
    """
    blocks = getattr(module, "layers", None)
    if not isinstance(blocks, torch.nn.ModuleList) or not len(blocks):
        return dict(paths)
    last = len(blocks) - 1
    blocks[0] = BlockWithBreak(blocks[0], before=True)
    blocks[last] = BlockWithBreak(blocks[last], before=False)
    moved = {f"layers.{index}.": f"layers.{index}.block." + ("block." if last == 0 else "") for index in (0, last)}
    return {name: _moved(path, moved) for name, path in paths.items()}


def remove(edge: EdgeProgramManager) -> None:
    """Take the breaks out of a lowered program again; they have done their work."""
    for name in edge.methods:
        graph = edge.exported_program(name).graph_module.graph
        for node in graph.nodes:
            if node.op == "call_function" and "graph_break" in str(node.target):
                node.replace_all_uses_with(node.args[0])
        graph.eliminate_dead_code()


def _pass(value: T) -> T:
    if not isinstance(value, torch.Tensor):
        return value
    passed: T = torch.ops.lora_core_coreml.graph_break(value)
    return passed


def _moved(path: str, moved: Mapping[str, str]) -> str:
    for prefix, replacement in moved.items():
        if path.startswith(prefix):
            return replacement + path.removeprefix(prefix)
    return path
