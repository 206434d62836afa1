"""A decoder run layer by layer in float64 and without torch, for what its linear layers are given.

One layer's weights are in memory at a time, and the hidden states of all prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.models import hf_names
from lora_core.models.architecture import Architecture
from lora_core.tensors import LazyTensor

Array = npt.NDArray[Any]
Tokens = npt.NDArray[np.int64]
Visit = Callable[[str, Array, Array], Array]
"""Given a linear layer's name, its inputs (tokens, in) and its weight (out, in): the weight to go on with. Layers that
read the same inputs are given the same array."""


@attrs.frozen(kw_only=True, eq=False)
class CalibratedDecoder:
    """A decoder as its architecture and stored tensors describe it; several prompts are run side by side."""

    architecture: Architecture
    tensors: Mapping[str, LazyTensor]
    visit: Visit
    lengths: tuple[int, ...]
    rope: tuple[Array, Array]

    @classmethod
    def over(
        cls, architecture: Architecture, tensors: Mapping[str, LazyTensor], prompts: Sequence[Tokens], visit: Visit
    ) -> CalibratedDecoder:
        """Return the decoder for `prompts` of these lengths."""
        lengths = tuple(map(len, prompts))
        where = np.concatenate([np.arange(length) for length in lengths])
        tables = architecture.rope.tables(architecture.head_dim, max(lengths))
        cos, sin = (table[where, None, : architecture.head_dim // 2].astype(np.float64) for table in tables)
        return cls(architecture=architecture, tensors=tensors, visit=visit, lengths=lengths, rope=(cos, sin))

    def run(self, prompts: Sequence[Tokens]) -> Array:
        """Return what the output head is given for every token of all prompts, (tokens, dim)."""
        tokens = np.concatenate(prompts)
        rows, where = np.unique(tokens, return_inverse=True)
        hidden = self._read(f"{hf_names.EMBEDDING}.weight")[rows][where]
        for index in range(self.architecture.layers):
            block = f"{hf_names.BLOCKS}{index}"
            hidden = hidden + self._attention(f"{block}.self_attn", self._norm(f"{block}.input_layernorm", hidden))
            hidden = hidden + self._mlp(f"{block}.mlp", self._norm(f"{block}.post_attention_layernorm", hidden))
        return self._norm(hf_names.FINAL_NORM, hidden)

    def linear(self, name: str, inputs: Array) -> Array:
        """Return the outputs of the linear layer called `name`."""
        weight = self.visit(name, inputs, self._read(f"{name}.weight"))
        outputs: Array = inputs @ weight.T
        bias = f"{name}.bias"
        return outputs + self._read(bias) if bias in self.tensors else outputs

    def _read(self, name: str) -> Array:
        return self.tensors[name].read().astype(np.float64)

    def _norm(self, name: str, x: Array) -> Array:
        mean = np.square(x).mean(axis=-1, keepdims=True)
        normed: Array = x / np.sqrt(mean + self.architecture.norm_eps) * self._read(f"{name}.weight")
        return normed

    def _mlp(self, name: str, x: Array) -> Array:
        gate = self.linear(f"{name}.gate_proj", x)
        up = self.linear(f"{name}.up_proj", x)
        return self.linear(f"{name}.down_proj", gate * (0.5 * (1.0 + np.tanh(gate * 0.5))) * up)

    def _attention(self, name: str, x: Array) -> Array:
        width = self.architecture.head_dim
        q, k, v = (
            self.linear(f"{name}.{part}", x).reshape(len(x), -1, width) for part in ("q_proj", "k_proj", "v_proj")
        )
        if self.architecture.qk_norm:
            q, k = self._norm(f"{name}.q_norm", q), self._norm(f"{name}.k_norm", k)
        q, k = self._turn(q), self._turn(k)
        ends = np.cumsum(self.lengths)[:-1]
        parts = zip(*(np.split(each, ends) for each in (q, k, v)), strict=True)
        return self.linear(f"{name}.o_proj", np.concatenate([_attend(*part) for part in parts]))

    def _turn(self, x: Array) -> Array:
        cos, sin = self.rope
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attend(q: Array, k: Array, v: Array) -> Array:
    """Return causal attention of one prompt: q (tokens, heads, width), k and v (tokens, kv heads, width)."""
    length, kv_heads, width = k.shape
    heads = q.reshape(length, kv_heads, -1, width).transpose(1, 2, 0, 3)
    scores = heads @ k.transpose(1, 2, 0)[:, None] / float(np.sqrt(width))
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (powers / powers.sum(axis=-1, keepdims=True)) @ v.transpose(1, 0, 2)[:, None]
    return np.asarray(mixed.transpose(2, 0, 1, 3).reshape(length, -1))
