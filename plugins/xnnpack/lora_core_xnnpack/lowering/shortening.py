# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Methods of fewer layers, cut out of traced ones: tracing is most of what a lowering costs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import attrs
from executorch.exir import EdgeProgramManager

from lora_core.fast_lowering.cutting import NotAChainError, cut
from lora_core_xnnpack.lowering.lowering import EdgeMethods


def shortened(edge: EdgeMethods, blocks: str, keep: Sequence[int]) -> EdgeMethods | None:
    """Return the methods with the layers `keep` only, as `cut` says; None if they cannot be cut out."""
    try:
        programs = {name: cut(program, blocks, keep) for name, program in edge.programs.items()}
    except NotAChainError:
        return None
    old = edge.manager
    return attrs.evolve(edge, manager=EdgeProgramManager(programs, old._config_methods, copy.copy(old.compile_config)))
