"""Keep parameters from being copied: they are what a lowering's memory consists of."""

from __future__ import annotations

import copy
from typing import Any

from lora_core_xnnpack.lowering.fast.patching import Patches


def share_parameters(patches: Patches) -> None:
    """Let torch's tracer look at the parameters themselves, and give each backend a program that shares its tensors.

    torch 2.13.0 (`_dynamo/variables/builder.py`, `_clone_input`) clones every tensor of the module twice, in case that
    tracing changes it; a parameter without gradient that a graph only reads does not change. ExecuTorch 1.5.1
    (`backend_details.py`) deep-copies each partition's program with its weights; XNNPACK's passes replace tensors and
    never write into one. Drop when neither copies.
    """
    import torch
    from executorch.exir.backend.backend_details import BackendDetails
    from torch._dynamo.variables import builder

    clone = builder._clone_input

    def look_at(value: Any, fake_mode: Any) -> Any:
        if isinstance(value, torch.nn.Parameter) and not value.requires_grad:
            return value
        return clone(value, fake_mode)

    def share(_cls: Any, program: Any, _specs: Any) -> Any:
        tensors = [*program.state_dict.values(), *program.constants.values()]
        return copy.deepcopy(program, {id(each): each for each in tensors if isinstance(each, torch.Tensor)})

    patches.replace(builder, "_clone_input", look_at)
    patches.replace(BackendDetails, "copy_exported_program_for_preprocess", classmethod(share))
