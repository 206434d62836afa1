"""XNNPACK's weight cache: packed weights that programs of one process share by content."""

from __future__ import annotations

from typing import Literal

import attrs

from lora_core_xnnpack.runtime.library import runtime_library
from lora_core_xnnpack.runtime.runtime_options import BackendOptions, OptionError

WEIGHT_CACHE = "weight_cache_enabled"
WORKSPACE_SHARING = "workspace_sharing_mode"
WORKSPACE_MODES = ("disabled", "per-model", "global")  # XNNWorkspaceManager's WorkspaceSharingMode


@attrs.frozen(kw_only=True)
class WeightCacheState:
    """What the runtime says of its cache. Only `on` shares weights; `impossible` has a `reason`, and is off."""

    state: Literal["on", "off", "impossible"]
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}" if self.reason else self.state


def switch_weight_cache(wanted: bool) -> WeightCacheState:
    """Switch the cache for the programs that this process loads next, and return what reads back.

    The runtime must be loaded. Programs that are loaded keep what they were loaded with.
    """
    try:
        BackendOptions(runtime_library()).set_flag(WEIGHT_CACHE, wanted)
    except OptionError as error:
        return WeightCacheState(state="impossible", reason=str(error))
    return WeightCacheState(state="on" if wanted else "off")


def workspace_sharing() -> str:
    """Return how delegates share the memory they work in; `unknown: ...` where the runtime does not say."""
    try:
        mode = BackendOptions(runtime_library()).number(WORKSPACE_SHARING)
    except OptionError as error:
        return f"unknown: {error}"
    return WORKSPACE_MODES[mode] if 0 <= mode < len(WORKSPACE_MODES) else f"mode {mode}"
