"""Encodings as tensors of a container: float32 pairs (scale, offset), folded over layers.

Bits are not stored: they belong to the graph, and no section may change them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.artifacts.folding import fold, unfold
from lora_core_qnn_sim.encodings.grid import Encoding

Array = npt.NDArray[Any]
SUFFIX = ".encoding"


def to_tensors(encodings: Mapping[str, Encoding]) -> dict[str, Array]:
    """Return the folded tensors of `encodings`; both numbers are exact in float32."""
    pairs = {f"{name}{SUFFIX}": np.array([e.scale, e.offset], np.float32) for name, e in encodings.items()}
    return fold(pairs)


def from_tensors(tensors: Mapping[str, Array], bits: Mapping[str, int]) -> dict[str, Encoding]:
    """Return the encodings among (folded) `tensors`; `bits` gives the width of each name."""
    found = unfold({name: array for name, array in tensors.items() if name.endswith(SUFFIX)})
    encodings = {}
    for key, pair in found.items():
        name = key.removesuffix(SUFFIX)
        symmetric = name.endswith(".weight")
        encodings[name] = Encoding(bits=bits[name], scale=float(pair[0]), offset=int(pair[1]), symmetric=symmetric)
    return encodings


def encodings_id(encodings: Mapping[str, Encoding]) -> str:
    """Return the SHA-256 hex that identifies a set of encodings: what weights are bound to."""
    text = "\n".join(f"{name} {e.bits} {e.scale!r} {e.offset}" for name, e in sorted(encodings.items()))
    return hashlib.sha256(text.encode()).hexdigest()
