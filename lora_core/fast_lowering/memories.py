"""Let go of what was lowered when the lowering ends."""

from __future__ import annotations

from typing import Any

from lora_core.fast_lowering.patching import Patches


def forget_programs(patches: Patches) -> None:
    """Take what holds whole programs, and so their weights, out of memories that outlive them when the block ends.

    torch 2.13 (`_subclasses/fake_tensor.py`) remembers what operators gave for fake tensors, by their arguments, and a
    delegate is an argument of its call. It does so for the process, and in each environment of symbolic sizes, which
    the sizes in that memory keep alive unseen by the collector. ExecuTorch 1.5.1 (`exir/backend/utils.py`)
    remembers which nodes were alike, and each of its checks the last node that it refused. Drop when they do so weakly.
    """
    from executorch.exir.backend.utils import WhyNoPartition, is_same_node
    from torch._higher_order_ops import executorch_call_delegate
    from torch._subclasses import fake_tensor

    kept: list[tuple[dict[Any, Any], Any]] = []
    checks: list[WhyNoPartition] = []
    refuse = WhyNoPartition.__call__

    def noting(remember: Any) -> Any:
        def remember_and_note(memory: dict[Any, Any], key: Any, entry: Any) -> None:
            remember(memory, key, entry)
            if key.key[0] is executorch_call_delegate:
                kept.append((memory, key))

        return remember_and_note

    def refuse_and_note(self: Any, node: Any, reason: str) -> None:
        checks.append(self)
        refuse(self, node, reason)

    def forget() -> None:
        is_same_node.cache_clear()
        for check in checks:
            check.node = None
        for memory, key in kept:
            memory.pop(key, None)

    for name in ("_set_cache_key", "_set_cache_key_for_shape_env"):
        patches.replace(fake_tensor, name, noting(getattr(fake_tensor, name)))
    patches.replace(WhyNoPartition, "__call__", refuse_and_note)
    patches.undo(forget)
