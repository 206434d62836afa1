"""The types that adapters' tensors are stored in: what is quantized of a slot, and how, without torch.

ExecuTorch 1.5.1's XNNPACK takes a linear layer with int8 weights, a scale for each row, whose inputs it quantizes for
each token as it runs: what `8da8w` is for the base. Matrices in float16 take float16 inputs, which are converted in the
delegate (`lowering/float_conversions.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import AdapterError
from lora_core.quant.policy import HALF, QuantPolicy, Scheme

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lora_core.adapters.slots.plan import Slot

FP32, FP16, INT8 = "fp32", "fp16", "int8"
ADAPTER_SCHEME = Scheme(bits=8, activations="int8_dynamic")
"""What a policy says of LoRA matrices that are to be stored in int8."""
ADAPTER_SCHEMES: Mapping[str, Scheme | None] = {FP32: None, FP16: HALF, INT8: ADAPTER_SCHEME}
"""What a policy says of LoRA matrices, by the type that they are to be stored in."""
SCALE = ".scale"
"""The end of the name of a part that holds the scales of another."""
StoredParts = Mapping[str, "npt.NDArray[Any]"]
"""The arrays of a module's slots as a program stores them, by part."""
_MOST = 127
LARGEST_HALF = 65504
_QUANTIZED = frozenset(("a", "b", "delta"))


@attrs.frozen(kw_only=True)
class QuantizedRows:
    """A matrix as int8 with a scale for each row: a value is their product."""

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    @classmethod
    def of(cls, matrix: npt.NDArray[np.float32]) -> QuantizedRows:
        """Quantize `matrix`, each row by its largest value: one rounding of a quotient, the same on every processor."""
        import numpy as np

        largest = np.abs(matrix).max(axis=1)
        scales = np.maximum(largest / np.float32(_MOST), np.finfo(np.float32).tiny)
        values = np.clip(np.rint(matrix / scales[:, None]), -_MOST, _MOST).astype(np.int8)
        return cls(values=values, scales=scales)


def dtype_of(policy: QuantPolicy) -> str:
    """Return the type in which `policy` has adapters stored."""
    return next(name for name, scheme in ADAPTER_SCHEMES.items() if scheme == policy.lora)


def quantized_parts(slot: Slot) -> Iterator[str]:
    """Yield the parts of `slot` that other types are for: matrices, and not gains, shifts and tables of vectors."""
    return (part.name for part in slot.parts if part.name in _QUANTIZED and not part.table)


def as_stored(array: npt.NDArray[np.float32], part: str, dtype: str) -> npt.NDArray[Any]:
    """Return what is stored of the matrix `array` as `part` (its scales, if that is what it names) in type `dtype`."""
    if part.endswith(SCALE):
        return QuantizedRows.of(array).scales
    if dtype == "float16":
        return in_half(array)
    return QuantizedRows.of(array).values if dtype == "int8" else array


def in_half(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Return `array` rounded to float16; raises `AdapterError` if a value is too large for it."""
    import numpy as np

    largest = float(np.abs(array).max(initial=0.0))
    if largest > LARGEST_HALF:
        raise AdapterError(
            f"A matrix of the adapter has a value of {largest:.3g}, and float16 ends at {LARGEST_HALF}.",
            remedy="Export the bundle with --adapter-dtype fp32.",
        )
    return array.astype(np.float16)
