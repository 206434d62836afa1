# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Methods of fewer layers, and without slots, cut out of traced ones: tracing is most of what a lowering costs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import attrs
from executorch.exir import EdgeProgramManager
from torch.export import ExportedProgram

from lora_core.fast_lowering.cutting import NotAChainError, cut
from lora_core.fast_lowering.unwrapping import NotBesideError, unwrapped
from lora_core_xnnpack.lowering.lowering import EdgeMethods


def shortened(edge: EdgeMethods, blocks: str, keep: Sequence[int]) -> EdgeMethods | None:
    """Return the methods with the layers `keep` only, as `cut` says; None if they cannot be cut out."""
    try:
        programs = {name: cut(program, blocks, keep) for name, program in edge.programs.items()}
    except NotAChainError:
        return None
    return attrs.evolve(edge, manager=_manager(edge, programs))


def bare(edge: EdgeMethods, wrapped: Mapping[str, str]) -> EdgeMethods | None:
    """Return the methods without slots, as `unwrapped` says; None if these cannot be cut out."""
    try:
        programs = {name: unwrapped(program, wrapped) for name, program in edge.programs.items()}
    except NotBesideError:
        return None
    return attrs.evolve(edge, manager=_manager(edge, programs), lora=frozenset(), inside=frozenset())


def _manager(edge: EdgeMethods, programs: dict[str, ExportedProgram]) -> EdgeProgramManager:
    old = edge.manager
    return EdgeProgramManager(programs, old._config_methods, copy.copy(old.compile_config))
