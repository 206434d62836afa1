# ruff: noqa: TID253  this module is imported only to build a model, with torch loaded
"""Caches of keys and values in fewer bytes, for ExecuTorch's Llama, with the attention that reads them.

Whoever lowers the decoder calls `attend` in place of writing into a cache and `llama::custom_sdpa`.
"""

from __future__ import annotations

from typing import Any

import executorch.kernels.quantized  # noqa: F401 - registers operators that quantize tokens
import torch
from executorch.examples.models.llama.source_transformation.custom_kv_cache import QuantizedCacheType, QuantizedKVCache


class HalfCache(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Keys and values of one block in float16, (1, context, heads, head_dim); attention computes in that."""

    def __init__(self, context_len: int, heads: int, head_dim: int) -> None:
        super().__init__()
        for name in ("k_cache", "v_cache"):
            self.register_buffer(name, torch.zeros(1, context_len, heads, head_dim, dtype=torch.float16))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: Any) -> torch.Tensor:
        """Keep `k` and `v` (1, length, heads, head_dim) from position `start` on; return what `q` finds, its shape.

        All are float32.
        """
        q, k, v = (each.to(torch.float16) for each in (q, k, v))
        torch.ops.llama.update_cache(k, self.k_cache, start)
        torch.ops.llama.update_cache(v, self.v_cache, start)
        attended: torch.Tensor = torch.ops.llama.custom_sdpa(q, self.k_cache, self.v_cache, start, None, 0, True)
        return attended.to(torch.float32)


class Int8Cache(QuantizedKVCache):  # type: ignore[misc]  # ExecuTorch is untyped here
    """ExecuTorch's quantized cache: int8, a float32 scale and an int8 zero point for each head of a token.

    As in ExecuTorch's `QuantizedSDPA`, queries are quantized too.
    """

    def __init__(self, context_len: int, heads: int, head_dim: int) -> None:
        super().__init__(
            1, context_len, heads, head_dim, QuantizedCacheType.AffineAsymmetric, use_custom_update_cache_op=True
        )

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: Any) -> torch.Tensor:
        """Keep `k` and `v` (1, length, heads, head_dim) from position `start` on; return what `q` finds, its shape.

        All are float32.
        """
        queries, *asked = self._rounded(q)
        keys = self._kept("k", k, start)
        values = self._kept("v", v, start)
        result: torch.Tensor = torch.ops.llama.custom_quantized_sdpa(
            queries, keys[0], values[0], start, None, 0, True, None, *asked[::-1], *keys[:0:-1], *values[:0:-1]
        )
        return result

    def _kept(self, which: str, value: torch.Tensor, start: Any) -> tuple[torch.Tensor, ...]:
        kept = tuple(getattr(self, f"{which}_cache{part}") for part in ("", "_scales", "_zero_points"))
        for rounded, cache in zip(self._rounded(value), kept, strict=True):
            torch.ops.llama.update_cache(rounded, cache, start)
        return kept

    def _rounded(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return `value` as int8, its scales and its zero points, in the types that the operators take."""
        integers, scales, zero_points = self._quantize(value)
        return integers, scales.to(torch.float32), zero_points.to(torch.int8)


def replace_caches(module: torch.nn.Module, kind: str) -> None:
    """Give every block of ExecuTorch's `Transformer` a cache of `kind` (`fp16` or `int8`) in place of its own."""
    made = {"fp16": HalfCache, "int8": Int8Cache}[kind]
    for layer in module.layers:
        _, context_len, heads, head_dim = layer.attention.kv_cache.k_cache.shape
        with torch.device("cpu"):
            layer.attention.kv_cache = made(context_len, heads, head_dim)
