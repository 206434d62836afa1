"""What a session of the ONNX backend can be told; import-light, the command line reads the fields' metadata."""

from __future__ import annotations

import attrs


def _is_count(_instance: object, field: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{field.name} is {value!r}, and must be a number of threads")


def _switch(given: object) -> object:
    return {"on": True, "off": False}.get(given, given) if isinstance(given, str) else given


def _is_switch(_instance: object, field: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{field.name} is {value!r}, and must be on or off")


@attrs.frozen(kw_only=True)
class OnnxSessionOptions:
    """How to run a bundle."""

    threads: int = attrs.field(
        default=0,
        validator=_is_count,
        metadata={"help": "Threads of a session; 0: the runtime decides."},
    )
    prepack: bool = attrs.field(
        default=True,
        converter=_switch,
        validator=_is_switch,
        metadata={
            "help": "Keep a copy of the weights in the order in which kernels read them. off: they are read from the "
            "mapped file, which loads at once and takes memory that the system can take back; steps take longer.",
            "choices": ("on", "off"),
        },
    )
