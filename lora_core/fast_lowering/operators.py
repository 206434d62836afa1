"""Look for operators that Python has not seen only when there are new ones."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.fast_lowering.patching import Patches

if TYPE_CHECKING:
    from torch._ops import OperatorBase

_COMPOSITE = "CompositeImplicitAutograd"


@attrs.define
class _Found:
    """The operators that the last walk found, and what there was to be found then."""

    among: object = None
    operators: frozenset[OperatorBase] = frozenset()


_FOUND = _Found()


def list_operators_once(patches: Patches) -> None:
    """Leave out a walk over all of torch's operators when it would find what the last one of this process found.

    torch 2.13.0 (`_export/utils.py`) walks twice whenever a program is decomposed, and makes Python know every
    composite operator of the C++ dispatcher again for each of some forty namespaces. An operator is composite by its
    registration with the dispatcher, or by what a module does when it is imported. Drop when it walks once.
    """
    import torch
    from torch._export import utils
    from torch.export import decomp_utils, exported_program

    materialize, collect, known = utils._materialize_cpp_cia_ops, utils._collect_all_valid_cia_ops, None

    def registered() -> Any:
        return torch._C._dispatch_get_registrations_for_dispatch_key(_COMPOSITE)

    def materialize_new() -> None:
        nonlocal known
        found = registered()
        if found != known:
            materialize()
            known = found

    def to_be_found() -> object:
        spaces = [(name, len(getattr(getattr(torch.ops, name), "_dir", ()))) for name in torch.ops._dir]
        return registered(), spaces, len(sys.modules)

    def collect_new() -> frozenset[OperatorBase]:
        if to_be_found() != _FOUND.among:
            _FOUND.operators = frozenset(collect())
            _FOUND.among = to_be_found()  # the walk itself makes Python know more
        return _FOUND.operators

    patches.replace(utils, "_materialize_cpp_cia_ops", materialize_new)
    for module in (utils, decomp_utils, exported_program):
        patches.replace(module, "_collect_all_valid_cia_ops", collect_new)
