# ruff: noqa: TID253  this module is imported only while exporting, with torch already loaded
"""The same decoder in the operators that XNNPACK takes, so that a layer is two delegates around its attention.

ExecuTorch's Llama leaves to portable kernels what XNNPACK has no operator for (ExecuTorch 1.5.1: a mean over the last
axis; slices, and views with two sizes that are not known, of a sequence of any length), and reads position and rotary
tables again in every layer. Here

- the mean of RMSNorm is a linear layer with one output whose bias is epsilon, and rotate-half one with weights of
  1, -1 and 0, which is exact;
- every view leaves one size open, that of the sequence;
- position and tables are read once, for all layers.

Parameters stay the objects that they were, under their names, so what is quantized, adapted and stored is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from executorch.examples.models.llama.attention import AttentionMHA
from executorch.examples.models.llama.llama_transformer import Transformer, TransformerBlock
from executorch.examples.models.llama.norm import RMSNorm, ScalelessRMSNorm
from executorch.examples.models.llama.source_transformation.custom_kv_cache import CustomKVCache
from executorch.examples.models.llama.source_transformation.sdpa import SDPACustom
from torch.nn import functional

from lora_core.models.executorch.attention import RotateHalf
from lora_core.models.executorch.key_value_caches import HalfCache, Int8Cache


class MeanPlusEpsilon(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The mean over the last axis plus epsilon; the axis stays, with one value.

    `shares` are (1, dim), each 1 / dim, `epsilon` (1,): buffers that no checkpoint names, so that no policy quantizes
    them and no adapter finds a layer here. Means share them where they are equal: a stored blob is one tensor's.
    """

    def __init__(self, shares: torch.Tensor, epsilon: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("shares", shares, persistent=False)
        self.register_buffer("epsilon", epsilon, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean of `x` (..., dim) plus epsilon, (..., 1)."""
        return functional.linear(x, self.shares, self.epsilon)


class HalfTurn(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """`(x1, x2)` to `(-x2, x1)`, halves of the last axis: `rotate_half` of ExecuTorch's `rope.py`. Of heads that are
    rotated up to a `width` only, the rest becomes zero: their sines are zero too.
    """

    def __init__(self, dim: int, width: int | None = None) -> None:
        super().__init__()
        half = (dim if width is None else width) // 2
        weight = torch.zeros(dim, dim)
        weight[:half, half : 2 * half], weight[half : 2 * half, :half] = -torch.eye(half), torch.eye(half)
        self.register_buffer("weight", weight + 0.0, persistent=False)  # no zero with a sign

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` (..., dim) with its halves turned."""
        return functional.linear(x, self.weight)


class LeanNorm(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """ExecuTorch's `RMSNorm`, or that without a weight, with its mean as a linear layer."""

    def __init__(self, norm: RMSNorm | ScalelessRMSNorm, mean: MeanPlusEpsilon) -> None:
        super().__init__()
        self.weight, self.mean = getattr(norm, "weight", None), mean
        self.add_unit_offset = getattr(norm, "add_unit_offset", False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` (..., dim) normalized over its last axis."""
        normalized = x * torch.rsqrt(self.mean(x * x))
        if self.weight is None:
            return normalized
        return normalized * (1.0 + self.weight if self.add_unit_offset else self.weight)


class LeanAttention(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """ExecuTorch's `AttentionMHA` with `llama::custom_sdpa`, for one sequence whose place is known."""

    def __init__(self, attention: AttentionMHA, half_turn: HalfTurn) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = attention.wq, attention.wk, attention.wv, attention.wo
        if attention.use_qk_norm:
            self.q_norm_fn, self.k_norm_fn = attention.q_norm_fn, attention.k_norm_fn
        self.norms_heads, self.kv_cache, self.half_turn = attention.use_qk_norm, attention.kv_cache, half_turn
        self.whole = type(attention.kv_cache) is CustomKVCache  # while it is traced, it has a type of its own
        self.heads, self.kv_heads, self.head_dim = attention.n_heads, attention.n_kv_heads, attention.head_dim

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, start: Any
    ) -> tuple[torch.Tensor, None]:
        """Return the attention's output for `x` (1, length, dim), and no news for the options, as blocks expect.

        `cos` and `sin` are (1, length, 1, head_dim); `start` is the position of the first token.
        """
        q = self.wq(x).view(1, -1, self.heads, self.head_dim)
        k = self.wk(x).view(1, -1, self.kv_heads, self.head_dim)
        v = self.wv(x).view(1, -1, self.kv_heads, self.head_dim)
        if self.norms_heads:
            q, k = self.q_norm_fn(q), self.k_norm_fn(k)
        q = q * cos + self.half_turn(q) * sin
        k = k * cos + self.half_turn(k) * sin
        return self.wo(self._attended(q, k, v, start).view(1, -1, self.heads * self.head_dim)), None

    def _attended(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: Any) -> torch.Tensor:
        cache: Any = self.kv_cache
        if self.whole:
            torch.ops.llama.update_cache(k, cache.k_cache, start)
            torch.ops.llama.update_cache(v, cache.v_cache, start)
            found: torch.Tensor = torch.ops.llama.custom_sdpa(q, cache.k_cache, cache.v_cache, start, None, 0, True)
        else:
            found = cache.attend(q, k, v, start)
        return found


class LeanDecoder(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """ExecuTorch's `Transformer` for one sequence, with position and rotary tables read once."""

    def __init__(self, decoder: Transformer) -> None:
        super().__init__()
        # In the order of their first use: programs and files list buffers in that of the module.
        self.rope, self.tok_embeddings, self.layers = decoder.rope, decoder.tok_embeddings, decoder.layers
        self.norm, self.output = decoder.norm, decoder.output
        self.full_logits, self.max_context_len = decoder.generate_full_logits, decoder.max_context_len

    def forward(self, tokens: torch.Tensor, attn_options: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits after `tokens` (1, length), or after each; `input_pos` (1,) is the first one's position."""
        start: Any = attn_options["input_pos"].item()
        torch._check(start >= 0)
        torch._check(start < self.max_context_len)
        cos, sin = (
            table.narrow(0, start, tokens.shape[1]).view(1, -1, 1, table.shape[1])
            for table in (self.rope.freqs_cos, self.rope.freqs_sin)
        )
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h, _ = layer(h, cos, sin, {"start": start})
        if not self.full_logits:
            h = h[:, -1, :]
        logits: torch.Tensor = self.output(self.norm(h))
        return logits


def lean(module: torch.nn.Module) -> torch.nn.Module:
    """Return `module` with what ExecuTorch's Llama and the core's decoder have in it made lean, in place; other parts
    stay as they are.
    """
    _replace_norms(module)
    _replace_turns(module)
    if not (type(module) is Transformer and _understood(module)):
        return module
    half_turn = HalfTurn(module.params.head_dim)
    for block in module.layers:
        block.attention = LeanAttention(block.attention, half_turn)
    return LeanDecoder(module)


def _replace_norms(module: torch.nn.Module) -> None:
    norms = [(path, norm) for path, norm in module.named_modules() if type(norm) in (RMSNorm, ScalelessRMSNorm)]
    shares = {dim: torch.full((1, dim), 1 / dim) for dim in {norm.dim for _, norm in norms}}
    epsilons = {eps: torch.full((1,), eps) for eps in {norm.eps for _, norm in norms}}
    for path, norm in norms:
        parent, _, name = path.rpartition(".")
        mean = MeanPlusEpsilon(shares[norm.dim], epsilons[norm.eps])
        setattr(module.get_submodule(parent), name, LeanNorm(norm, mean))


def _replace_turns(module: torch.nn.Module) -> None:
    turns = [(path, turn) for path, turn in module.named_modules() if type(turn) is RotateHalf]
    made = {(dim, width): HalfTurn(dim, width) for dim, width in {(turn.dim, turn.width) for _, turn in turns}}
    for path, turn in turns:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, made[turn.dim, turn.width])


def _understood(decoder: Transformer) -> bool:
    """Say whether `LeanDecoder` and `LeanAttention` compute what `decoder` does: a family may define it otherwise."""
    params = decoder.params
    return (
        params.use_kv_cache
        and params.enable_dynamic_shape
        and params.use_hf_rope
        and params.apply_embedding
        and params.apply_output
        and params.input_prune_map is None
        and params.output_prune_map is None
        and params.num_kv_shared_layers == 0
        and decoder.rope.freqs_cos.shape[1] == params.head_dim
        and all(type(block) is TransformerBlock and _understood_attention(block.attention) for block in decoder.layers)
    )


def _understood_attention(attention: torch.nn.Module) -> bool:
    return (
        type(attention) is AttentionMHA
        and type(attention.kv_cache) in (CustomKVCache, HalfCache, Int8Cache)
        and type(attention.SDPA) is SDPACustom
        and not attention.SDPA.use_attention_mask
        and not (attention.use_q_gate or attention.use_attn_o_gate or attention.use_attn_o_norm)
        and (not attention.use_qk_norm or (attention.qk_norm_before_rope and attention.scale_query_by == 1.0))
    )
