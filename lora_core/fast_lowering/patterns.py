"""Trace what ExecuTorch looks for in every graph once for a process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_core.fast_lowering.patching import Patches

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from torch.fx import GraphModule

# Sixty graphs of a few operators: the patterns that ExecuTorch's pass has, whatever is lowered.
_TRACED: dict[tuple[CodeType, tuple[Any, ...]], GraphModule] = {}


def trace_patterns_once(patches: Patches) -> None:
    """Give each lowering the patterns of quantized operators that the first one traced, and what replaces them.

    ExecuTorch 1.5.1 (`passes/_quant_patterns_and_replacements.py`) traces them again whenever a program is finished.
    The functions are made anew each time, so one is known by its code and what it is closed over. They are matched and
    copied from, never changed. Drop when it does so once.
    """
    from executorch.exir.passes import _quant_patterns_and_replacements as patterns

    trace = patterns._trace_and_lower_to_edge_ops

    def trace_once(function: Callable[..., Any]) -> GraphModule:
        enclosed = tuple(cell.cell_contents for cell in function.__closure__ or ())
        key = function.__code__, enclosed
        if key not in _TRACED:
            _TRACED[key] = trace(function)
        return _TRACED[key]

    patches.replace(patterns, "_trace_and_lower_to_edge_ops", trace_once)
