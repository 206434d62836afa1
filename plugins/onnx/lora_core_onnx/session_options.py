"""What a session of the ONNX backend can be told; import-light, the command line reads the fields' metadata."""

from __future__ import annotations

import attrs


def _is_count(_instance: object, field: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{field.name} is {value!r}, and must be a number of threads")


@attrs.frozen(kw_only=True)
class OnnxSessionOptions:
    """How to run a bundle."""

    threads: int = attrs.field(
        default=0,
        validator=_is_count,
        metadata={"help": "Threads of a session; 0: the runtime decides."},
    )
