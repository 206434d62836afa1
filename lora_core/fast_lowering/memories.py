"""Let go of what was lowered when the lowering ends."""

from __future__ import annotations

from lora_core.fast_lowering.patching import Patches


def forget_programs(patches: Patches) -> None:
    """Take what holds whole programs, and so their weights, out of process-wide memories when the block ends.

    torch 2.13 (`_subclasses/fake_tensor.py`) remembers what operators gave for fake tensors, by their arguments, and a
    delegate is an argument of its call. It does so for the process and for each environment of symbolic sizes, and
    these are held by what their methods remember. ExecuTorch 1.5.1 (`exir/backend/utils.py`) remembers which nodes were
    alike. Drop when they do so weakly.
    """
    from executorch.exir.backend.utils import is_same_node
    from executorch.exir.lowered_backend_module import LoweredBackendModule
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    def forget() -> None:
        is_same_node.cache_clear()
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()
        for key in [*FakeTensorMode.cache]:
            if any(isinstance(part, LoweredBackendModule) for part in key.key):
                del FakeTensorMode.cache[key]

    patches.undo(forget)
