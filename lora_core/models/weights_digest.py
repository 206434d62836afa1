"""Which weights a base has, told from a few rows of each tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lora_core.tensors import LazyTensor, Sliceable

_ROWS = 8


def weights_digest(tensors: Mapping[str, LazyTensor]) -> str:
    """Return a digest of `tensors` that tells one base from another of the same shape, in milliseconds.

    It is the SHA-256 hex of names, shapes and of eight rows of each, as float32: the type they are stored in does not
    count. Training moves every row of what it trains, so it tells fine-tunes apart; a single changed row it may miss.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(_sample(tensor), dtype="<f4").data.cast("B"))
    return digest.hexdigest()


def _sample(tensor: LazyTensor) -> npt.NDArray[np.float32]:
    rows = tensor.shape[0] if tensor.shape else 0
    if len(tensor.shape) < 2 or rows <= _ROWS or not isinstance(tensor, Sliceable):
        whole = tensor.read()
        return whole[_chosen(rows)] if len(tensor.shape) > 1 else whole
    return np.concatenate([tensor.read_rows(row, row + 1) for row in _chosen(rows)])


def _chosen(rows: int) -> list[int]:
    """Return up to eight rows from the first to the last."""
    return sorted({index * (rows - 1) // (_ROWS - 1) for index in range(_ROWS)})
