# ruff: noqa: TID253  this module is imported only to build a model, with torch loaded
"""Decoders that ExecuTorch's Llama does not define, called as it is: of ExecuTorch's norms, caches and operators.

ExecuTorch 1.5.1's `ModelArgs` has fields for most of what they need, but reads them in its Qualcomm definition only
(`static_llama.py`). What differs from block to block stands in the blocks, so that a decoder of some of them is one.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from executorch.examples.models.llama.norm import RMSNorm

from lora_core.models.architecture import Architecture
from lora_core.models.executorch.attention import (
    CachedAttention,
    FixedAttention,
    Options,
    activated,
)
from lora_core.models.executorch.convolution import FixedConvolution, ShortConvolution
from lora_core.models.executorch.delta import DeltaAttention
from lora_core.models.executorch.experts import ExpertMlp
from lora_core.models.executorch.layer_inputs import LayerInput, LayerInputTable
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.layer_kinds import LayerKind


class GatedMlp(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A gated MLP; gate and up may be one layer."""

    def __init__(self, architecture: Architecture, kind: LayerKind) -> None:
        super().__init__()
        dim, hidden, bias = architecture.dim, architecture.hidden_dim_of(kind), architecture.mlp_bias
        self.hidden, self.activation = hidden, architecture.activation
        if architecture.fused:
            self.w13 = torch.nn.Linear(dim, 2 * hidden, bias=bias)
        else:
            self.w1, self.w3 = torch.nn.Linear(dim, hidden, bias=bias), torch.nn.Linear(dim, hidden, bias=bias)
        self.w2 = torch.nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: torch.Tensor, options: Options) -> torch.Tensor:
        """Return what `x` (1, length, dim) becomes."""
        if hasattr(self, "w13"):
            both = self.w13(x)
            gate, up = both[..., : self.hidden], both[..., self.hidden :]
        else:
            gate, up = self.w1(x), self.w3(x)
        result: torch.Tensor = self.w2(activated(self.activation, gate, options) * up)
        return result


class DecoderBlock(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """What mixes tokens (attention, or a convolution) and MLP, each with a norm before it, after it or both, and added
    to the stream; then the block's own input of each token and its scale, if it has them.
    """

    def __init__(self, architecture: Architecture, kind: LayerKind, attention: torch.nn.Module, params: Any) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = ExpertMlp(params) if kind.experts else GatedMlp(architecture, kind)
        self.scales = architecture.residual_scale != 1.0
        dim, eps = architecture.dim, architecture.norm_eps
        if architecture.norms != "after":
            self.attention_norm, self.ffn_norm = RMSNorm(dim, eps=eps), RMSNorm(dim, eps=eps)
        if architecture.norms != "before":
            self.post_attention_norm, self.post_ffn_norm = RMSNorm(dim, eps=eps), RMSNorm(dim, eps=eps)
        if architecture.layer_inputs is not None:
            self.layer_input = LayerInput(architecture, architecture.layer_inputs)
        if architecture.layer_scale:
            self.layer_scalar = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, options: Options) -> tuple[torch.Tensor, Options | None]:
        """Return the stream after this block, and the attention's news for the options."""
        attended, news = self.attention(self._normed("attention_norm", x), options)
        h = x + self._scaled(self._normed("post_attention_norm", attended), options)
        fed = self.feed_forward(self._normed("ffn_norm", h), options)
        h = h + self._scaled(self._normed("post_ffn_norm", fed), options)
        if hasattr(self, "layer_input"):
            h = h + self.layer_input(h, options)
        return h * self.layer_scalar if hasattr(self, "layer_scalar") else h, news

    def _normed(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, name)(x) if hasattr(self, name) else x

    def _scaled(self, branch: torch.Tensor, options: Options) -> torch.Tensor:
        return branch * options["residual_scale"] if self.scales else branch


class RotaryTables(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Cosines and sines (context, head_dim) of every position, the local ones beside the global ones if there are any.

    Values of a head that are not rotated have cosine 1 and sine 0.
    """

    def __init__(self, architecture: Architecture, context_len: int) -> None:
        super().__init__()
        ropes = {"global": architecture.rope}
        if architecture.local_rope is not None:
            ropes["local"] = architecture.local_rope
        self.dims = {name: architecture.rotary_dim(name) for name in ropes}  # type: ignore[arg-type]  # two positions
        found = {
            name: [torch.from_numpy(each) for each in rope.tables(self.dims[name], context_len)]
            for name, rope in ropes.items()
        }
        for name, place, rest in (("freqs_cos", 0, torch.ones), ("freqs_sin", 1, torch.zeros)):
            parts = [
                torch.cat([each[place], rest(context_len, dim - each[place].shape[1], device="cpu")], dim=1)
                for each, dim in zip(found.values(), self.dims.values(), strict=True)
            ]
            self.register_buffer(name, torch.cat(parts, dim=1), persistent=False)

    def by_name(self, cos: torch.Tensor, sin: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return rows of both tables as (1, length, 1, head_dim) by kind of position."""
        if len(self.dims) == 1:
            return {name: (cos.view(1, -1, 1, dim), sin.view(1, -1, 1, dim)) for name, dim in self.dims.items()}
        ends = dict(zip(self.dims, itertools.accumulate(self.dims.values()), strict=True))
        return {name: (self._part(cos, name, end), self._part(sin, name, end)) for name, end in ends.items()}

    def _part(self, table: torch.Tensor, name: str, end: int) -> torch.Tensor:
        # A copy, and no view: a slice of columns has gaps between its rows.
        dim = self.dims[name]
        return table[:, end - dim : end].reshape(1, -1, 1, dim)


class FamilyDecoder(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A decoder for one sequence, with inputs and outputs of ExecuTorch's `Transformer`.

    Static attention's have besides the states of convolutions, whose shapes are `conv_states`.
    """

    def __init__(self, architecture: Architecture, options: ExecutorchOptions, params: Any) -> None:
        super().__init__()
        self.params, self.static = params, options.attention == "static"
        self.context_len, self.full_logits = options.max_context_len, options.full_logits
        self._hold_numbers(architecture)
        self.custom = options.attention == "custom_sdpa"
        attentions = [self._mixing(architecture, kind, index) for index, kind in enumerate(architecture.kinds)]
        self.conv_states = {
            each.key: (1, each.count - 1, each.dim) for each in attentions if isinstance(each, FixedConvolution)
        }
        windows = {each.window for each in attentions if isinstance(each, CachedAttention) and each.needs_mask}
        self.masked = tuple(sorted(windows, key=lambda window: window or 0))
        self.tok_embeddings = torch.nn.Embedding(architecture.vocab_size, architecture.dim)
        if architecture.layer_inputs is not None:
            self.layer_inputs = LayerInputTable(architecture, architecture.layer_inputs)
        blocks = zip(architecture.kinds, attentions, strict=True)
        self.layers = torch.nn.ModuleList(DecoderBlock(architecture, *each, params) for each in blocks)
        self.norm = RMSNorm(architecture.dim, eps=architecture.norm_eps)
        self.output = torch.nn.Linear(architecture.dim, architecture.vocab_size, bias=False)
        if self.masked:
            keys = torch.arange(self.context_len, device="cpu").view(1, -1)
            self.register_buffer("key_positions", keys, persistent=False)

    @property
    def cache_sizes(self) -> dict[str, tuple[int, int]]:
        """The heads and their width of each cache that static attention has, by its key."""
        attentions = [layer.attention for layer in self.layers]
        return {
            each.k_caches[0].cache_key(): (each.kv_heads, each.head_dim)
            for each in attentions
            if isinstance(each, FixedAttention) and not each.borrows
        }

    def _hold_numbers(self, architecture: Architecture) -> None:
        """Register what values are multiplied by; equal numbers are one tensor, since a stored blob is one tensor's."""
        neutral = {"embedding_scale": 1.0, "residual_scale": 1.0, "logit_divisor": 1.0, "logit_softcap": None}
        named = {name: getattr(architecture, name) for name in neutral}
        named = {name: None if value == neutral[name] else value for name, value in named.items()}
        named |= {name: getattr(architecture, name) for name in ("attention_scale", "attention_softcap")}
        named |= {"visible": 0.0, "hidden": float("-inf")}
        if architecture.activation == "gelu_tanh":
            linear = 2 * math.sqrt(2 / math.pi)
            named |= {"gelu_linear": linear, "gelu_cubic": linear * 0.044715}
        if architecture.layer_inputs is not None:
            scales = {"input_scale": architecture.layer_inputs.width**0.5, "projection_scale": architecture.dim**-0.5}
            named |= {**scales, "input_share": 2**-0.5}
        held: dict[float, torch.Tensor] = {}
        for name, value in named.items():
            tensor = None if value is None else held.setdefault(value, torch.tensor([value], device="cpu"))
            self.register_buffer(name, tensor, persistent=False)
        self.numbers = tuple(named)

    def _mixing(self, architecture: Architecture, kind: LayerKind, index: int) -> torch.nn.Module:
        if kind.mixes == "convolution":
            return FixedConvolution(architecture, f"l{index}") if self.static else ShortConvolution(architecture)
        if kind.mixes == "delta":
            return DeltaAttention(self.params, index, None)
        if self.static:
            return FixedAttention(architecture, kind, self.context_len, layer_id=index)
        return CachedAttention(architecture, kind, self.context_len, custom=self.custom)

    def forward(self, tokens: torch.Tensor, attn_options: Options) -> Any:
        """Return the logits after `tokens` (1, length), or after each; static attention's new caches beside them."""
        options = self._static_options(attn_options) if self.static else self._options(tokens, attn_options)
        options = {**options, **{name: getattr(self, name) for name in self.numbers}}
        h = self.tok_embeddings(tokens)
        if self.embedding_scale is not None:
            h = h * self.embedding_scale
        inputs = self.layer_inputs(tokens, h, options) if hasattr(self, "layer_inputs") else None
        for index, layer in enumerate(self.layers):
            if inputs is not None:
                options["layer_input"] = self.layer_inputs.part(inputs, index)
            h, news = layer(h, options)
            options = {**options, **(news or {})}
        if not self.full_logits:
            h = h[:, attn_options.get("last_valid_token_pos", -1), :]
        logits = self._capped(self.output(self.norm(h)))
        news = {name: options[name] for name in ("out_cache_state", "out_conv_state") if name in options}
        return (logits, news) if self.static else logits

    def _options(self, tokens: torch.Tensor, given: Options) -> Options:
        length, position = tokens.shape[1], given["input_pos"][-1:]
        cos, sin = self.rope.freqs_cos, self.rope.freqs_sin
        if not self.custom:
            positions = torch.arange(length, device=tokens.device) + position
            tables = self.rope.by_name(cos[positions], sin[positions])
            return {"position": position, "positions": positions, "masks": self._masks(positions), "tables": tables}
        start: Any = position.item()
        torch._check(start >= 0)
        torch._check(start < self.context_len)
        rows = (cos.narrow(0, start, length), sin.narrow(0, start, length))
        options: Options = {"position": position, "start": start, "tables": self.rope.by_name(*rows)}
        if self.masked:
            options["masks"] = self._masks(torch.arange(length, device=tokens.device) + start)
        return options

    def _static_options(self, given: Options) -> Options:
        rows = (given["freqs_cos_override"], given["freqs_sin_override"])
        return {**given, "tables": self.rope.by_name(*rows)}

    def _masks(self, positions: torch.Tensor) -> dict[int | None, torch.Tensor]:
        distance = positions.view(-1, 1) - self.key_positions
        causal = distance >= 0
        return {
            window: torch.where(causal if window is None else causal & (distance < window), self.visible, self.hidden)
            for window in self.masked
        }

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        if self.logit_divisor is not None:
            logits = logits / self.logit_divisor
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return logits


def build_decoder(architecture: Architecture, options: ExecutorchOptions, params: Any) -> torch.nn.Module:
    """Return the decoder in eval mode, its parameters on the meta device; `params` are ExecuTorch's `ModelArgs`."""
    if options.attention == "custom_sdpa":
        from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401 - registers the operators
    with torch.device("meta"):
        module = FamilyDecoder(architecture, options, params)
    module.rope = RotaryTables(architecture, options.max_context_len)
    return module.requires_grad_(False).eval()
