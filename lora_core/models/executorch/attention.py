# ruff: noqa: TID253  this module is imported only to build a model, with torch loaded
"""Attention of decoders that ExecuTorch's Llama does not define, with its caches and its operators.

Every view leaves one size open, that of the sequence, so that a program of any length has no size to compute. Numbers
that values are multiplied by come with the options, as tensors that the decoder holds once: ExecuTorch would make a
constant of each in every place, which no weight of the model is.
"""

from __future__ import annotations

from typing import Any

import torch
from executorch.examples.models.llama.norm import RMSNorm, ScalelessRMSNorm
from torch.nn import functional

from lora_core.models.architecture import Architecture
from lora_core.models.layer_kinds import LayerKind

Options = dict[str, Any]


class RotateHalf(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """`(x1, x2, rest)` to `(-x2, x1, rest)`: halves of the first `width` values of the last axis, as in `rope.py`."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim, self.width = dim, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` (..., dim) with its halves turned."""
        half = self.width // 2
        return torch.cat([-x[..., half : self.width], x[..., :half], x[..., self.width :]], dim=-1)


class KeyValueCache(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Keys and values of one block: (1, context, heads, head_dim), as `llama::custom_sdpa` reads them."""

    def __init__(self, context_len: int, heads: int, head_dim: int) -> None:
        super().__init__()
        for name in ("k_cache", "v_cache"):
            self.register_buffer(name, torch.zeros(1, context_len, heads, head_dim, device="cpu"))


class DecoderAttention(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Projections, normalized heads and rotation: what all kinds of attention begin with.

    `positions` names the rotary tables among those in the options; `window` is the number of tokens that it reaches,
    None where that is the whole context. Attention that `borrows` has queries alone; keys and values come with the
    options as `lent`, by `positions`, from the last that `lends` its own.
    """

    def __init__(self, architecture: Architecture, kind: LayerKind, context_len: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = architecture.heads, architecture.kv_heads_of(kind)
        self.head_dim, self.borrows, self.lends = architecture.head_dim_of(kind), kind.borrows, kind.lends
        self.scale, self.softcap = architecture.attention_scale, architecture.attention_softcap
        self.window, self.positions = architecture.window_of(kind, context_len), kind.positions
        self.normalizes = ("whole" if architecture.qk_norm_whole else "head") if architecture.qk_norm else None
        self.gated = architecture.gated_queries
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if architecture.fused:
            self.wqkv = torch.nn.Linear(architecture.dim, q + 2 * kv, bias=architecture.qkv_bias)
        else:
            widths = {"wq": 2 * q if self.gated else q}
            if not self.borrows:
                widths |= {"wk": kv} if kind.values_are_keys else {"wk": kv, "wv": kv}
            for name, width in widths.items():
                setattr(self, name, torch.nn.Linear(architecture.dim, width, bias=architecture.qkv_bias))
        self.wo = torch.nn.Linear(q, architecture.dim, bias=architecture.o_bias)
        if self.normalizes:
            normed = (q, kv) if self.normalizes == "whole" else (self.head_dim, self.head_dim)
            for norm, size in zip(("q_norm_fn", "k_norm_fn"), normed[: 1 if self.borrows else 2], strict=False):
                setattr(self, norm, RMSNorm(size, eps=architecture.norm_eps))
        if architecture.value_norm and not self.borrows:
            self.v_norm_fn = ScalelessRMSNorm(self.head_dim, eps=architecture.norm_eps)
        rope = architecture.local_rope if self.positions == "local" else architecture.rope
        assert rope is not None, "local positions come with tables of their own"
        self.half_turn = RotateHalf(self.head_dim, rope.width(self.head_dim))

    def project(
        self, x: torch.Tensor, options: Options
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return queries, keys and values (1, length, heads, head_dim) of `x` (1, length, dim), normalized and rotated
        (None: they are borrowed), and the gate (1, length, heads * head_dim) if there is one.

        The options have `tables`: cosines and sines (1, length, 1, head_dim) by kind of position.
        """
        if self.borrows:
            q = self.wq(x).reshape(1, -1, self.heads, self.head_dim)
            return self._rotated(self.q_norm_fn(q) if self.normalizes else q, options), None, None, None
        q, k, v = self._projected(x)
        gate = None
        if self.gated:
            both = q.view(1, -1, self.heads, 2 * self.head_dim)
            q, gate = both[..., : self.head_dim], both[..., self.head_dim :]
            gate = gate.reshape(1, -1, self.heads * self.head_dim)
        if self.normalizes == "whole":
            q, k = self.q_norm_fn(q), self.k_norm_fn(k)
        q, k, v = (
            each.reshape(1, -1, heads, self.head_dim)
            for each, heads in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads))
        )
        if self.normalizes == "head":
            q, k = self.q_norm_fn(q), self.k_norm_fn(k)
        if hasattr(self, "v_norm_fn"):
            v = self.v_norm_fn(v)
        return self._rotated(q, options), self._rotated(k, options), v, gate

    def _rotated(self, x: torch.Tensor, options: Options) -> torch.Tensor:
        if self.positions == "none":
            return x
        cos, sin = options["tables"][self.positions]
        result: torch.Tensor = x * cos + self.half_turn(x) * sin
        return result

    def lent(self, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that this attention borrows."""
        keys, values = options["lent"][self.positions]
        return keys, values

    def lending(self, keys: torch.Tensor, values: torch.Tensor, options: Options) -> Options:
        """Return the news for the options by which others borrow `keys` and `values`, nothing if none does."""
        return {"lent": {**options.get("lent", {}), self.positions: (keys, values)}} if self.lends else {}

    def output(self, mixed: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        """Return what the block adds to the stream for mixed values (1, length, heads * head_dim)."""
        result: torch.Tensor = self.wo(mixed if gate is None else mixed * torch.sigmoid(gate))
        return result

    def _projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if not hasattr(self, "wqkv"):
            q, k = self.wq(x), self.wk(x)
            return q, k, self.wv(x) if hasattr(self, "wv") else k
        whole, q, kv = self.wqkv(x), self.heads * self.head_dim, self.kv_heads * self.head_dim
        return whole[..., :q], whole[..., q : q + kv], whole[..., q + kv :]

    def weighted(self, scores: torch.Tensor, mask: torch.Tensor, options: Options) -> torch.Tensor:
        """Return attention weights of scores that are not scaled yet."""
        scores = scores * options["attention_scale"]
        if self.softcap is not None:
            scores = torch.tanh(scores / options["attention_softcap"]) * options["attention_softcap"]
        return torch.softmax(scores + mask, dim=-1)


class CachedAttention(DecoderAttention):
    """Attention for one sequence with its cache inside.

    The options have `positions` (length,), `start` where there is a custom operator, and `masks` (length, context) by
    window: None is causal alone.
    """

    def __init__(self, architecture: Architecture, kind: LayerKind, context_len: int, *, custom: bool) -> None:
        super().__init__(architecture, kind, context_len)
        self.custom = custom
        if not self.borrows:
            self.kv_cache = KeyValueCache(context_len, self.kv_heads, self.head_dim)

    @property
    def needs_mask(self) -> bool:
        """Whether the mask for its window is read: `llama::custom_sdpa` is causal by itself."""
        return self.window is not None or self.softcap is not None or not self.custom

    def forward(self, x: torch.Tensor, options: Options) -> tuple[torch.Tensor, Options]:
        """Return what `x` (1, length, dim) becomes, and the news for the options."""
        q, k, v, gate = self.project(x, options)
        keys, values = self.lent(options) if k is None or v is None else self._kept(k, v, options)
        news = self.lending(keys, values, options)
        if self.custom and self.softcap is None:
            return self.output(self._custom(q, keys, values, options), gate), news
        return self.output(self._plain(q, keys, values, options), gate), news

    def _kept(self, k: torch.Tensor, v: torch.Tensor, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.kv_cache.k_cache, self.kv_cache.v_cache
        if self.custom:
            torch.ops.llama.update_cache(k, keys, options["start"])
            torch.ops.llama.update_cache(v, values, options["start"])
        else:
            keys.index_copy_(1, options["positions"], k)
            values.index_copy_(1, options["positions"], v)
        return keys, values

    def _custom(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: Options) -> torch.Tensor:
        if self.window is None:
            place = (options["start"], None, 0, True)
        else:
            place = (0, options["masks"][self.window], 0, False)
        attended = torch.ops.llama.custom_sdpa(q, keys, values, *place, self.scale)
        return attended.view(1, -1, self.heads * self.head_dim)

    def _plain(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: Options) -> torch.Tensor:
        groups, each, dim, context = self.kv_heads, self.heads // self.kv_heads, self.head_dim, keys.shape[1]
        queries = q.view(-1, groups, each, dim).permute(1, 2, 0, 3).reshape(groups, -1, dim)
        scores = torch.bmm(queries, keys[0].permute(1, 2, 0)).view(groups, each, -1, context)
        weights = self.weighted(scores, options["masks"][self.window], options).view(groups, -1, context)
        mixed = torch.bmm(weights, values[0].transpose(0, 1)).view(groups, each, -1, dim)
        return mixed.permute(2, 0, 1, 3).reshape(1, -1, self.heads * dim)


class FixedAttention(DecoderAttention):
    """ExecuTorch's static attention (`static_mha`): caches and masks as inputs, new keys and values as outputs."""

    def __init__(self, architecture: Architecture, kind: LayerKind, context_len: int, *, layer_id: int) -> None:
        from executorch.examples.models.llama.static_attention import StaticKCache, StaticVCache

        super().__init__(architecture, kind, context_len)
        self.layer_id = layer_id
        if not self.borrows:
            self.k_caches = torch.nn.ModuleList([StaticKCache(layer_id, 0)])
            self.v_caches = torch.nn.ModuleList([StaticVCache(layer_id, 0)])

    def forward(self, x: torch.Tensor, options: Options) -> tuple[torch.Tensor, Options]:
        """Return what `x` (1, length, dim) becomes, and the caches' news; in four dimensions, as CoreML wants it."""
        q, k, v, gate = self.project(x, options)
        q, after = q.transpose(1, 2), options.get("out_cache_state")
        if k is None or v is None:
            k, v = self.lent(options)
        else:
            before = options.get("in_cache_state")
            k, after = self.k_caches[0].update(k.transpose(1, 2), before, after)
            v, after = self.v_caches[0].update(v.transpose(1, 2), before, after)
        news = {"out_cache_state": after, **self.lending(k, v, options)}
        length, seen = q.size(-2), k.size(-2)
        groups, each, dim = self.kv_heads, self.heads // self.kv_heads, self.head_dim
        scores = q.reshape(groups, each, length, dim) @ k.view(groups, 1, seen, dim).transpose(-2, -1)
        mask = options["masks"][seen - length]
        weights = self.weighted(scores.view(1, self.heads, length, seen), mask, options)
        weights = weights.view(groups, each, length, seen)
        mixed = (weights @ v.view(groups, 1, seen, dim)).view(1, self.heads, length, dim)
        mixed = mixed.transpose(1, 2).reshape(1, length, self.heads * dim)
        return self.output(mixed, gate), news


def activated(name: str, x: torch.Tensor, options: Options) -> torch.Tensor:
    """Return the activation that `Architecture` calls `name`.

    The approximation of GELU by a hyperbolic tangent is `x * sigmoid(x * (linear + cubic * x^2))`, which has no
    operator of its own here: ExecuTorch 1.5.1 gives XNNPACK the exact GELU in its place (`op_gelu.py`).
    """
    if name == "gelu_tanh":
        return x * torch.sigmoid(x * (options["gelu_linear"] + options["gelu_cubic"] * (x * x)))
    return functional.silu(x) if name == "silu" else functional.gelu(x)
