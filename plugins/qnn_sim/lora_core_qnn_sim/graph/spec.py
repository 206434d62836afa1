"""What one static graph is made of, as plain data that travels in the context binary."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from lora_core.intake.limits import LAYERS, raised
from lora_core.models.supported_families import FAMILIES

_MOST_BITS = 32
"""Of a grid: one of 2**40 bits would be a number that fills the memory."""
_STREAM = ("attention_add.output", "mlp_add.output")
# Fields that Llama's graphs do without: a graph that has them as Llama does is stored without them, as it was before.
_BEYOND = (
    "activation",
    "unrotated",
    "embedding_scale",
    "residual_scale",
    "score_scale",
    "fused",
    "norms",
    "qk_norm_whole",
    "rotary_dim",
    "local",
    "score_cap",
    "logit_cap",
    "convolving",
    "conv_bias",
)


@attrs.frozen(kw_only=True)
class LlamaDims:
    """Dimensions of a Llama-family decoder; `head_dim` need not be `dim / n_heads`.

    `biased` names the projections that have a bias (`q_proj`, ...). In a `rotated` base the norms of the residual
    stream have no gains (they are folded into the matrices that follow). Queries and keys of the layers `unrotated`
    know no positions, those of the layers `local` have rotary tables of their own; `rotary_dim` values of a head are
    rotated, from the first on (None: all). Embeddings are multiplied by `embedding_scale`, what a block adds to the
    stream by `residual_scale`, scores by `score_scale` (None: by one over the root of `head_dim`). A cap c turns x into
    c * tanh(x / c). The layers `convolving` mix neighbouring tokens instead of attending, `conv_bias` says whether with
    a bias. `fused`, `norms` and `qk_norm_whole` are as in `ModelFamily`.
    """

    n_layers: int
    dim: int
    hidden_dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    biased: tuple[str, ...] = ()
    qk_norm: bool = False
    tied: bool = True
    rotated: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    unrotated: tuple[int, ...] = ()
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    score_scale: float | None = None
    fused: bool = False
    norms: Literal["before", "around", "after"] = "before"
    qk_norm_whole: bool = False
    rotary_dim: int | None = None
    local: tuple[int, ...] = ()
    score_cap: float | None = None
    logit_cap: float | None = None
    convolving: tuple[int, ...] = ()
    conv_bias: bool = False

    @property
    def rotatable(self) -> bool:
        """Whether the stream can be rotated: gains of a norm after a layer have no matrix to be folded into."""
        return self.norms == "before"

    @property
    def turned(self) -> int:
        """How many values of a head are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def logits(self) -> str:
        """The activation that is the logits."""
        return "lm_head.output" if self.logit_cap is None else "lm_head.capped.output"

    def columns(self, op: str) -> slice:
        """Return the columns of the rotary tables that an operation `rope` or `rope_local` reads."""
        half = self.turned // 2
        return slice(half, 2 * half) if op == "rope_local" else slice(0, half)

    @property
    def score_divisor(self) -> float:
        """By what scores are divided."""
        return math.sqrt(self.head_dim) if self.score_scale is None else 1.0 / self.score_scale

    def added(self, output: str) -> float:
        """Return what the second input of the sum `output` is multiplied by."""
        return self.residual_scale if output.endswith(_STREAM) else 1.0


@attrs.frozen(kw_only=True)
class LoraSlot:
    """A linear layer of the graph with a LoRA branch at `rank`; `layer` is the graph's name of the linear."""

    layer: str
    in_features: int
    out_features: int
    rank: int


@attrs.frozen(kw_only=True)
class GraphSpec:
    """Everything that fixes topology, shapes and data types; equal specs have equal graphs.

    `input_len` is the static number of tokens of the prefill graph (AR-N); the decode graph takes one. `alphas` is the
    length of the alpha vector: one per rank block of `rank / alphas` rows (1 unless hot switch).
    """

    dims: LlamaDims
    slots: tuple[LoraSlot, ...]
    context_len: int
    input_len: int
    act_bits: int
    lora_bits: int
    alphas: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        data = attrs.asdict(self, value_serializer=lambda _i, _a, v: list(v) if isinstance(v, tuple) else v)
        plain = {field.name: field.default for field in attrs.fields(LlamaDims) if field.name in _BEYOND}
        for name, default in plain.items():
            if getattr(self.dims, name) == default:
                del data["dims"][name]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphSpec:
        """Read what `to_json` wrote; raises `ValueError` for numbers of bits that no grid has."""
        fields = dict(data)
        for name in ("act_bits", "lora_bits"):
            if not 0 < fields[name] <= _MOST_BITS:
                raise ValueError(f"its {name} are {fields[name]}")
        dims = dict(fields["dims"])
        if not 0 < dims["n_layers"] <= raised(LAYERS):
            raise ValueError(f"it has {dims['n_layers']} layers")
        fields["dims"] = LlamaDims(
            **dims | {name: tuple(dims.get(name, ())) for name in ("biased", "unrotated", "local", "convolving")}
        )
        fields["slots"] = tuple(LoraSlot(**slot) for slot in fields["slots"])
        return cls(**fields)


_OWN = {own: name for family in FAMILIES for name, own in family.names.items()}
_LLAMAS = sorted(_OWN.items(), key=lambda each: len(each[0]), reverse=True)
"""Names of modules that a family has for itself, the longest first, and what Llama calls them."""


def graph_name(name: str) -> str:
    """Return the graph's name of a layer or tensor that checkpoints and adapters call `name`: Llama's."""
    block = re.match(r"model\.layers\.\d+\.", name)
    before, inner = ("", name) if block is None else (block[0], name[block.end() :])
    for own, llamas in _LLAMAS:
        if inner == own or inner.startswith(f"{own}."):
            inner = llamas + inner.removeprefix(own)
            break
    return f"{before}{inner}".removeprefix("model.")


def lora_a(layer: str) -> str:
    """Name the A weight of a slot: graph initializer, updatable tensor and safetensors key alike."""
    return f"{layer}.lora_a.weight"


def lora_b(layer: str) -> str:
    """Name the B weight of a slot."""
    return f"{layer}.lora_b.weight"
