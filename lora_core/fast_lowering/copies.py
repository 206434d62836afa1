"""Keep parameters from being copied: they are what a lowering's memory consists of."""

from __future__ import annotations

import copy
from typing import Any

from lora_core.fast_lowering.patching import Patches


def share_parameters(patches: Patches) -> None:
    """Give each backend a program that shares its tensors.

    ExecuTorch 1.5.1 (`backend_details.py`) deep-copies each partition's program with its weights; the passes
    of XNNPACK and coremltools' conversion replace tensors and never write into one. Drop when it does not.
    """
    import torch
    from executorch.exir.backend.backend_details import BackendDetails

    def share(_cls: Any, program: Any, _specs: Any) -> Any:
        tensors = [*program.state_dict.values(), *program.constants.values()]
        return copy.deepcopy(program, {id(each): each for each in tensors if isinstance(each, torch.Tensor)})

    patches.replace(BackendDetails, "copy_exported_program_for_preprocess", classmethod(share))
