"""Share provenance between graphs instead of copying its whole history for every node of every pass."""

from __future__ import annotations

from typing import Any

from lora_core.fast_lowering.patching import Patches


def share_provenance(patches: Patches) -> None:
    """Make `NodeSource` point at its ancestors rather than deep-copy them.

    torch 2.13.0 (`fx/traceback.py`) copies the chain of ancestors for each node in each replay, so the cost grows with
    the number of passes before. Nothing in the lowering changes a `NodeSource` once made, so the chain can be
    shared: debug handles, which are made from its far end, stay the same. The list is copied, because
    callers may append to `meta["from_node"]`. Drop when torch shares it itself.
    """
    from torch.fx.traceback import NodeSource

    class _WithoutHistory:
        """A node seen without its provenance: makes the original `__init__` skip the copy."""

        __slots__ = ("graph", "meta", "name", "target")

        def __init__(self, node: Any) -> None:
            self.name, self.target, self.graph = node.name, node.target, node.graph
            self.meta: dict[str, Any] = {}

    original = NodeSource.__init__

    def init(self: Any, node: Any, pass_name: str = "", action: Any = None) -> None:
        if not node:
            original(self, node, pass_name, action)
            return
        original(self, _WithoutHistory(node), pass_name, action)
        self.from_node = list(node.meta.get("from_node", ()))

    patches.replace(NodeSource, "__init__", init)
    patches.add(NodeSource, "__deepcopy__", lambda self, _memo: self)
