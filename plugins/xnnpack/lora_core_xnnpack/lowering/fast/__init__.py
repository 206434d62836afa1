"""Lower a model faster, without changing one byte of what comes out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version

import attrs

from lora_core_xnnpack.lowering.fast.collector import collect_rarely
from lora_core_xnnpack.lowering.fast.copies import share_parameters
from lora_core_xnnpack.lowering.fast.decompositions import decompose_once
from lora_core_xnnpack.lowering.fast.delegates import answer_for_delegates
from lora_core_xnnpack.lowering.fast.operators import list_operators_once
from lora_core_xnnpack.lowering.fast.partitions import describe_nothing, sort_in_place
from lora_core_xnnpack.lowering.fast.patching import Patches
from lora_core_xnnpack.lowering.fast.provenance import share_provenance
from lora_core_xnnpack.lowering.fast.recompile import recompile_lazily
from lora_core_xnnpack.lowering.fast.replay import replay_from_memory
from lora_core_xnnpack.lowering.fast.symbols import remember_arithmetic
from lora_core_xnnpack.lowering.fast.xnnpack_passes import skip_idle_passes

PROVEN_VERSIONS: Mapping[str, str] = {"torch": "2.13.0", "executorch": "1.5.1"}

PATCHES: Mapping[str, Callable[[Patches], None]] = {
    "provenance": share_provenance,
    "recompile": recompile_lazily,
    "decompositions": decompose_once,
    "xnnpack passes": skip_idle_passes,
    "replay": replay_from_memory,
    "descriptions": describe_nothing,
    "sort": sort_in_place,
    "collector": collect_rarely,
    "copies": share_parameters,
    "symbols": remember_arithmetic,
    "operators": list_operators_once,
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


def unproven_versions() -> dict[str, str]:
    """Return the installed version of each library that is not the one the patches were proven on."""
    found = {}
    for name, proven in PROVEN_VERSIONS.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "none"
        if installed.partition("+")[0] != proven:
            found[name] = installed
    return found


@contextmanager
def fast_lowering(only: Collection[str] | None = None) -> Iterator[FastLowering]:
    """Make torch.export and ExecuTorch's passes cheaper inside the block, with byte-identical results.

    `only` names the patches to use (default: all of `PATCHES`). On versions other than `PROVEN_VERSIONS`
    nothing is patched, and the yielded value says so. Everything is put back on exit, also after an exception.
    """
    names = tuple(PATCHES) if only is None else tuple(only)
    unknown = [name for name in names if name not in PATCHES]
    if unknown:
        raise ValueError(f"Unknown patches {unknown}. There are {list(PATCHES)}.")
    if unproven := unproven_versions():
        found = ", ".join(f"{name} {installed}" for name, installed in unproven.items())
        proven = ", ".join(f"{name} {wanted}" for name, wanted in PROVEN_VERSIONS.items())
        yield FastLowering(reason=f"Fast lowering was proven on {proven}; this is {found}.")
        return
    with _ACTIVE, ExitStack() as stack:
        for name in names:
            PATCHES[name](Patches(stack))
        yield FastLowering(patches=names)
