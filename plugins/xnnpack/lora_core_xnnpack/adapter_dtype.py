"""The types that adapters' tensors are stored in: what is quantized of a slot, and how, without torch.

ExecuTorch 1.5.1's XNNPACK takes a linear layer with int8 weights, a scale for each row, whose inputs it quantizes for
each token as it runs: what `8da8w` is for the base. It has none for float16 weights of float32 inputs, and delegates no
conversion between the two (`ToDimOrderCopyConfig`), so that each matrix in float16 would end a delegate twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.quant.policy import QuantPolicy, Scheme

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lora_core.adapters.slots.plan import Slot

FP32, INT8 = "fp32", "int8"
ADAPTER_SCHEME = Scheme(bits=8, activations="int8_dynamic")
"""What a policy says of LoRA matrices that are to be stored in int8."""
SCALE = ".scale"
"""The end of the name of a part that holds the scales of another."""
StoredParts = Mapping[str, "npt.NDArray[Any]"]
"""The arrays of a module's slots as a program stores them, by part."""
_MOST = 127
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
    return FP32 if policy.lora is None else INT8


def quantized_parts(slot: Slot) -> Iterator[str]:
    """Yield the parts of `slot` that int8 is for: matrices, and not the gains, shifts and tables of vectors."""
    return (part.name for part in slot.parts if part.name in _QUANTIZED and not part.table)


def as_stored(array: npt.NDArray[np.float32], part: str, dtype: str) -> npt.NDArray[Any]:
    """Return what is stored of the matrix `array` as `part` (its scales, if that is what it names) in type `dtype`."""
    if part.endswith(SCALE):
        return QuantizedRows.of(array).scales
    return QuantizedRows.of(array).values if dtype == "int8" else array
