"""What a session of the XNNPACK backend can be told; import-light, the command line reads the fields' metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs

from lora_core_xnnpack.runtime.packed_cache import AUTOMATIC, default_directory


def _switch(given: object) -> object:
    return {"on": True, "off": False}.get(given, given) if isinstance(given, str) else given


def _directory(given: object) -> object:
    if isinstance(given, str | Path):
        word = str(given)
        given = {"on": True, "off": False, AUTOMATIC: AUTOMATIC}.get(word, Path(word))
    if isinstance(given, bool):
        return default_directory() if given else None
    return given


def _is_switch(_instance: object, field: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{field.name} is {value!r}, and must be on or off")


def _is_count(_instance: object, field: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{field.name} is {value!r}, and must be a number of threads")


def _is_directory(_instance: object, field: attrs.Attribute[Any], value: object) -> None:
    if value != AUTOMATIC and not isinstance(value, Path | None):
        raise ValueError(f"{field.name} is {value!r}, and must be a directory")


@attrs.frozen(kw_only=True)
class XnnpackSessionOptions:
    """How to run a bundle.

    `packed_cache` is a directory in which packed weights are kept for further processes (True: one in the user's
    cache; None or False: nowhere), and `auto` the user's cache where that is worth it and can be done. The session that
    makes the file proves it when it closes.
    """

    weight_cache: bool = attrs.field(
        default=True,
        converter=_switch,
        validator=_is_switch,
        metadata={"help": "Share the base's packed weights in memory among programs.", "choices": ("on", "off")},
    )
    threads: int = attrs.field(
        default=0,
        validator=_is_count,
        metadata={"help": "Threads of the runtime, for the whole process; 0: the runtime decides."},
    )
    share_arena: bool = attrs.field(
        default=True,
        converter=_switch,
        validator=_is_switch,
        metadata={
            "help": "With a file of packed weights: let all programs of a session share one KV cache and one set of "
            "activations, by functions of ExecuTorch's that its Python interface does not offer.",
            "choices": ("on", "off"),
        },
    )
    packed_cache: Path | Literal["auto"] | None = attrs.field(
        default=AUTOMATIC,
        converter=_directory,
        validator=_is_directory,
        metadata={
            "help": "Keep packed weights in a file in this directory, which this process and later ones map instead of "
            "packing again; auto: in the user's cache, for a base of 64 MiB and more and where the disk has room; off: "
            "in memory."
        },
    )
