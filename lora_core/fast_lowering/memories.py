"""Let go of what was lowered when the lowering ends."""

from __future__ import annotations

import gc
from itertools import islice
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
    from executorch.exir.lowered_backend_module import LoweredBackendModule
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # What was remembered before cannot hold what is lowered now, and a process that lowers much remembers much.
    first, known = next(iter(FakeTensorMode.cache), None), len(FakeTensorMode.cache)
    checks: list[WhyNoPartition] = []
    refuse = WhyNoPartition.__call__

    def refuse_and_note(self: Any, node: Any, reason: str) -> None:
        checks.append(self)
        refuse(self, node, reason)

    def forget() -> None:
        is_same_node.cache_clear()
        for check in checks:
            check.node = None
        memories = [each.fake_tensor_cache for each in gc.get_objects() if type(each) is ShapeEnv]
        cleared = next(iter(FakeTensorMode.cache), None) is not first
        for memory, start in ((FakeTensorMode.cache, 0 if cleared else known), *((each, 0) for each in memories)):
            for key in [*islice(memory, start, None)]:
                if any(isinstance(part, LoweredBackendModule) for part in key.key):
                    del memory[key]

    patches.replace(WhyNoPartition, "__call__", refuse_and_note)
    patches.undo(forget)
