"""Trace without the stack of Python that each operator was called from."""

from __future__ import annotations

from lora_core.fast_lowering.patching import Patches


def record_no_stacks(patches: Patches) -> None:
    """Have torch's tracers leave out `node.meta["stack_trace"]`, a text for people that no file of a program has.

    torch 2.13.0 (`fx/proxy.py`) reads the source of every frame for every operator, and offers to leave it out
    (`fx/config.py`). Drop when it reads the source when somebody asks.
    """
    from torch.fx import config

    patches.replace(config, "do_not_emit_stack_traces", True)
