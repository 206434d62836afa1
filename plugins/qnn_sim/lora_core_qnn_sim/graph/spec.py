"""What one static graph is made of, as plain data that travels in the context binary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from lora_core.intake.limits import LAYERS, raised


@attrs.frozen(kw_only=True)
class LlamaDims:
    """Dimensions of a Llama-family decoder; `head_dim` need not be `dim / n_heads`.

    `biased` names the projections that have a bias (`q_proj`, ...). In a `rotated` base the norms of the residual
    stream have no gains (they are folded into the matrices that follow).
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
        return attrs.asdict(self, value_serializer=lambda _i, _a, v: list(v) if isinstance(v, tuple) else v)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphSpec:
        """Read what `to_json` wrote."""
        fields = dict(data)
        dims = dict(fields["dims"])
        if not 0 < dims["n_layers"] <= raised(LAYERS):
            raise ValueError(f"it has {dims['n_layers']} layers")
        fields["dims"] = LlamaDims(**dims | {"biased": tuple(dims["biased"])})
        fields["slots"] = tuple(LoraSlot(**slot) for slot in fields["slots"])
        return cls(**fields)


def graph_name(name: str) -> str:
    """Return the graph's name of a layer or tensor that checkpoints and adapters call `name`."""
    return name.removeprefix("model.")


def lora_a(layer: str) -> str:
    """Name the A weight of a slot: graph initializer, updatable tensor and safetensors key alike."""
    return f"{layer}.lora_a.weight"


def lora_b(layer: str) -> str:
    """Name the B weight of a slot."""
    return f"{layer}.lora_b.weight"
