"""Make torch.export and ExecuTorch's passes cheaper, without changing one byte of what comes out.

A patch takes `patching.Patches` and replaces what is costly. Those here suit every backend that goes through
ExecuTorch; a backend adds its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version

import attrs

from lora_core.fast_lowering.collector import collect_rarely, old_objects_spared
from lora_core.fast_lowering.copies import share_parameters
from lora_core.fast_lowering.decompositions import decompose_once
from lora_core.fast_lowering.delegates import answer_for_delegates
from lora_core.fast_lowering.dialect import import_executorch
from lora_core.fast_lowering.maps import map_without_types
from lora_core.fast_lowering.memories import forget_programs
from lora_core.fast_lowering.operators import list_operators_once
from lora_core.fast_lowering.partitions import describe_nothing, sort_in_place
from lora_core.fast_lowering.patching import Patches
from lora_core.fast_lowering.patterns import trace_patterns_once
from lora_core.fast_lowering.provenance import share_provenance
from lora_core.fast_lowering.recompile import recompile_lazily
from lora_core.fast_lowering.replay import replay_from_memory
from lora_core.fast_lowering.stacks import record_no_stacks
from lora_core.fast_lowering.symbols import remember_arithmetic

__all__ = ["PATCHES", "PROVEN_VERSIONS", "FastLowering", "Patch", "import_executorch", "old_objects_spared", "patched"]

Patch = Callable[[Patches], None]

PROVEN_VERSIONS: Mapping[str, str] = {"torch": "2.13.0", "executorch": "1.5.1"}

PATCHES: Mapping[str, Patch] = {
    "provenance": share_provenance,
    "recompile": recompile_lazily,
    "decompositions": decompose_once,
    "replay": replay_from_memory,
    "collector": collect_rarely,
    "memories": forget_programs,
    "descriptions": describe_nothing,
    "sort": sort_in_place,
    "copies": share_parameters,
    "symbols": remember_arithmetic,
    "operators": list_operators_once,
    "patterns": trace_patterns_once,
    "stacks": record_no_stacks,
    "maps": map_without_types,
    "delegates": answer_for_delegates,
}

# Patches are process-wide, so two blocks never overlap: a second thread waits.
_ACTIVE = threading.RLock()


@attrs.frozen(kw_only=True)
class FastLowering:
    """Whether the patches are in place; `reason` says why not."""

    patches: tuple[str, ...] = ()
    reason: str = ""

    @property
    def active(self) -> bool:
        """True when at least one patch is in place."""
        return bool(self.patches)


@contextmanager
def patched(patches: Mapping[str, Patch], versions: Mapping[str, str] = PROVEN_VERSIONS) -> Iterator[FastLowering]:
    """Have `patches`, by their names, in place inside the block.

    On other `versions` of the libraries than the patches were proven on nothing is replaced, and the yielded value says
    so. Everything is put back on exit, also after an exception.
    """
    if unproven := _unproven(versions):
        found = ", ".join(f"{name} {installed}" for name, installed in unproven.items())
        proven = ", ".join(f"{name} {wanted}" for name, wanted in versions.items())
        yield FastLowering(reason=f"Fast lowering was proven on {proven}; this is {found}.")
        return
    with _ACTIVE, ExitStack() as stack:
        for patch in patches.values():
            patch(Patches(stack))
        yield FastLowering(patches=tuple(patches))


def _unproven(versions: Mapping[str, str]) -> dict[str, str]:
    """Return the installed version of each library that is not the one the patches were proven on."""
    found = {}
    for name, proven in versions.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "none"
        if installed.partition("+")[0] != proven:
            found[name] = installed
    return found
