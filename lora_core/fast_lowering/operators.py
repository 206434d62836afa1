"""Look for operators that Python has not seen only when there are new ones."""

from __future__ import annotations

from lora_core.fast_lowering.patching import Patches

_COMPOSITE = "CompositeImplicitAutograd"


def list_operators_once(patches: Patches) -> None:
    """Leave out a walk over all of torch's operators when it would find what the last one found.

    torch 2.13.0 (`_export/utils.py`) makes Python know every composite operator of the C++ dispatcher, again for each
    of some forty namespaces whenever a program is decomposed. Drop when it does so once for all of them.
    """
    import torch
    from torch._export import utils

    materialize, known = utils._materialize_cpp_cia_ops, None

    def materialize_new() -> None:
        nonlocal known
        found = torch._C._dispatch_get_registrations_for_dispatch_key(_COMPOSITE)
        if found != known:
            materialize()
            known = found

    patches.replace(utils, "_materialize_cpp_cia_ops", materialize_new)
