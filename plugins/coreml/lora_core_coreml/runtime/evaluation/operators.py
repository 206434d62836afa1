"""References of our own for operators that coremltools' value inference lacks, gets wrong, or computes slowly.

Everything else runs through the operator's own `value_inference`. Each of these is tested against torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Values = Mapping[str, Any]
Reference = Callable[[Values], npt.NDArray[Any]]

REASONS: dict[str, str] = {
    "silu": "coremltools 9.0 has no value inference for it",
    "reduce_mean": "its value inference hands numpy a keep_dims that numpy 2 refuses",
    "reduce_max": "as reduce_mean",
    "rsqrt": "its value inference widens float16 to float32",
    "linear": "its value inference multiplies float16 matrices without BLAS; ours accumulates in float32 as it does",
    "matmul": "as linear",
    "cast": "a cast to float16 must not round while evaluating with float32",
}


def silu(values: Values) -> npt.NDArray[Any]:
    """Return x * sigmoid(x), the sigmoid in float32 and rounded to the type of x."""
    x = values["x"]
    with np.errstate(over="ignore"):
        sigmoid = 1.0 / (1.0 + np.exp(-x.astype(np.float32)))
    result: npt.NDArray[Any] = x * sigmoid.astype(x.dtype)
    return result


def reduce_mean(values: Values) -> npt.NDArray[Any]:
    """Return the mean over `axes`, accumulated in float32."""
    return np.asarray(np.mean(values["x"], axis=_axes(values), keepdims=_keep(values), dtype=np.float32))


def reduce_max(values: Values) -> npt.NDArray[Any]:
    """Return the maximum over `axes`."""
    result: npt.NDArray[Any] = np.max(values["x"], axis=_axes(values), keepdims=_keep(values))
    return result


def rsqrt(values: Values) -> npt.NDArray[Any]:
    """Return 1 / sqrt(x + epsilon)."""
    x = values["x"]
    return np.asarray(1.0 / np.sqrt(x.astype(np.float32) + np.float32(values.get("epsilon", 0.0))))


def linear(values: Values) -> npt.NDArray[Any]:
    """Return x @ weight.T + bias, accumulated in float32 and rounded once before the bias is added."""
    x, weight, bias = values["x"], values["weight"], values.get("bias")
    product: npt.NDArray[Any] = (x.astype(np.float32) @ weight.astype(np.float32).T).astype(x.dtype)
    return product if bias is None else np.asarray(product + bias)


def matmul(values: Values) -> npt.NDArray[Any]:
    """Return x @ y with optional transposition of either, accumulated in float32."""
    x, y = values["x"], values["y"]
    if values.get("transpose_x"):
        x = np.swapaxes(x, -1, -2)
    if values.get("transpose_y"):
        y = np.swapaxes(y, -1, -2)
    result: npt.NDArray[Any] = x.astype(np.float32) @ y.astype(np.float32)
    return result


def cast(values: Values) -> npt.NDArray[Any]:
    """Return x in another type; float16 is float32 here and is rounded by the caller where that is wanted."""
    types = {"fp16": np.float32, "fp32": np.float32, "bool": np.bool_}
    wanted = str(values["dtype"])
    return np.asarray(values["x"]).astype(types.get(wanted) or np.dtype(wanted))


def _axes(values: Values) -> tuple[int, ...] | None:
    axes = values.get("axes")
    return None if axes is None else tuple(int(axis) for axis in np.atleast_1d(axes))


def _keep(values: Values) -> bool:
    return bool(values.get("keep_dims", False))


REFERENCES: dict[str, Reference] = {
    "silu": silu,
    "reduce_mean": reduce_mean,
    "reduce_max": reduce_max,
    "rsqrt": rsqrt,
    "linear": linear,
    "matmul": matmul,
    "cast": cast,
}
