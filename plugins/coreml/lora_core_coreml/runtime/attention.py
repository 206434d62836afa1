"""Inputs and outputs of static attention in numpy: masks, rotary tables and caches, as the metadata places them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_coreml.program.naming import Kind

Array = npt.NDArray[Any]


@attrs.frozen(kw_only=True)
class Signature:
    """Where a method's flat inputs and outputs are, read from the program's constant methods.

    `states` has a row for each convolution: state in, and what a call adds to it.
    `caches` has a row for each cache: key in, key out, value in, value out, length. `masks` has index and cache length.
    """

    kind: Kind
    input_len: int
    freqs_cos: int
    freqs_sin: int
    masks: Array
    caches: Array
    last_token: int | None
    states: Array = attrs.field(factory=lambda: np.zeros((0, 2), np.int64))

    @property
    def cache_len(self) -> int:
        """How many tokens are cached before those of a call."""
        return int(self.caches[0][4])


class StaticAttention:
    """The caches of one conversation, and the inputs that a method takes at a position."""

    def __init__(
        self,
        tables: tuple[Array, Array],
        *,
        cache_len: int,
        sizes: Sequence[tuple[int, int]],
        dtype: np.dtype[Any],
        states: Sequence[tuple[int, ...]] = (),
    ) -> None:
        """`tables` are the cosines and sines of every position.

        For each of `sizes`, the heads of keys and values and their width, there is a cache of keys and one of values,
        kept in `dtype`, and the `states` of convolutions, by their shapes (1, tokens, width).
        """
        self._cos, self._sin = tables
        self._keys, self._values = (
            [np.zeros((1, heads, cache_len, head_dim), dtype) for heads, head_dim in sizes] for _ in range(2)
        )
        self._states = [np.zeros(each, dtype) for each in states]

    def inputs(self, signature: Signature, tokens: Sequence[int], position: int, count: int) -> list[Array]:
        """Return the `count` flat inputs for `tokens` at `position`; shorter calls are padded on the right."""
        length = signature.input_len
        flat: list[Any] = [None] * count
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(tokens)] = tokens
        flat[0] = padded
        flat[signature.freqs_cos] = _rows(self._cos, position, length)
        flat[signature.freqs_sin] = _rows(self._sin, position, length)
        for index, cache_len in signature.masks:
            flat[index] = _mask(length, int(cache_len), position, self._cos.dtype)
        for row, keys, values in zip(signature.caches, self._keys, self._values, strict=True):
            flat[row[0]], flat[row[2]] = keys, values
        if position == 0:
            self._states = [np.zeros_like(state) for state in self._states]
        for row, state in zip(signature.states, self._states, strict=True):
            flat[row[0]] = state
        if signature.last_token is not None:
            flat[signature.last_token] = np.array([len(tokens) - 1], np.int64)
        return flat

    def store(self, signature: Signature, outputs: Sequence[Array], position: int, count: int) -> None:
        """Keep what the first `count` tokens of a call leave for later ones."""
        room = min(count, signature.cache_len - position)
        for row, keys, values in zip(signature.caches, self._keys, self._values, strict=True):
            keys[:, :, position : position + room] = outputs[row[1]][:, :, :room]
            values[:, :, position : position + room] = outputs[row[3]][:, :, :room]
        for number, (row, state) in enumerate(zip(signature.states, self._states, strict=True)):
            fed = outputs[row[1]].reshape(1, -1, state.shape[-1])[:, :count]
            joined = np.concatenate([state, fed.astype(state.dtype)], axis=1)
            self._states[number] = np.ascontiguousarray(joined[:, -state.shape[1] :])


def _rows(table: Array, position: int, length: int) -> Array:
    """Return rows of a rotary table; those of padding behind its end are zero."""
    rows = np.zeros((length, table.shape[1]), table.dtype)
    found = table[position : position + length]
    rows[: len(found)] = found
    return rows


def _mask(length: int, cache_len: int, position: int, dtype: np.dtype[Any]) -> Array:
    """Return the additive mask: cached positions up to `position`, then causal within the call."""
    mask = np.full((1, length, cache_len + length), -np.inf, dtype)
    mask[:, :, :position] = 0
    mask[0, :, cache_len:] = np.where(np.tri(length, dtype=bool), 0, -np.inf)
    return mask
