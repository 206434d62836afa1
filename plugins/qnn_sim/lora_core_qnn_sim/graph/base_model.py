"""From a base model to the graph's dimensions and static tensors, by the names that the checkpoint gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.errors import ModelError, Problem
from lora_core.layers import ModelSummary
from lora_core.models.architecture import Architecture
from lora_core.models.decoders import read_llama
from lora_core.tensors import LazyTensor
from lora_core_qnn_sim.encodings.grid import ChannelWeight, quantize_channels
from lora_core_qnn_sim.graph.spec import LlamaDims, graph_name
from lora_core_qnn_sim.runtime.weights import BaseWeights

Float32 = npt.NDArray[np.float32]
_BUILDER = "The simulator's graph"
_CARRIED = (
    "gelu tanh activation",
    "norms around attention and MLP",
    "norms after attention and MLP",
    "queries and keys normalized as a whole",
    "fused layers",
    "rotary embeddings of two kinds",
    "layers without positions",
    "partly rotated heads",
    "LongRoPE",
    "convolutions",
    "multipliers",
    "soft caps",
)


def family_problems(summary: ModelSummary) -> list[Problem]:
    """Return what keeps `summary` from being a graph of the simulator."""
    return read_llama(summary, _BUILDER, carries=_CARRIED)[1]


def architecture_of(summary: ModelSummary) -> Architecture:
    """Return the decoder that a base without `family_problems` is; raises `ModelError`."""
    architecture, problems = read_llama(summary, _BUILDER, carries=_CARRIED)
    if architecture is None:
        raise ModelError(problems)
    return architecture


def dims_of(summary: ModelSummary) -> LlamaDims:
    """Return the dimensions of a base that has no `family_problems`."""
    architecture = architecture_of(summary)
    turned = architecture.rope.width(architecture.head_dim)
    usual = architecture.attention_scale == architecture.head_dim**-0.5
    biased = [graph_name(layer.name).rpartition(".")[2] for layer in summary.layers if layer.has_bias]
    return LlamaDims(
        n_layers=architecture.layers,
        dim=architecture.dim,
        hidden_dim=architecture.hidden_dim,
        n_heads=architecture.heads,
        n_kv_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        vocab_size=architecture.vocab_size,
        norm_eps=architecture.norm_eps,
        biased=tuple(dict.fromkeys(biased)),
        qk_norm=architecture.qk_norm,
        tied=architecture.tied,
        activation="gelu_tanh" if architecture.activation == "gelu_tanh" else "silu",
        unrotated=tuple(number for number, kind in enumerate(architecture.kinds) if kind.positions == "none"),
        embedding_scale=architecture.embedding_scale,
        residual_scale=architecture.residual_scale,
        score_scale=None if usual else architecture.attention_scale,
        fused=architecture.fused,
        norms=architecture.norms,
        qk_norm_whole=architecture.qk_norm and architecture.qk_norm_whole,
        rotary_dim=None if turned == architecture.head_dim else turned,
        local=tuple(number for number, kind in enumerate(architecture.kinds) if kind.positions == "local"),
        score_cap=architecture.attention_softcap,
        logit_cap=architecture.logit_softcap,
        convolving=tuple(number for number, kind in enumerate(architecture.kinds) if kind.mixes == "convolution"),
        conv_bias=architecture.conv_bias,
    )


@attrs.frozen(kw_only=True)
class RealWeights(Mapping[str, Float32]):
    """The float32 weights of a base under the graph's names, each read when it is asked for and kept by nobody.

    A tied output head has no weight of its own. The last norm's gains are divided by `logit_divisor`, which divides the
    logits of the base and of any adapter of the head.
    """

    tensors: Mapping[str, LazyTensor]
    logit_divisor: float = 1.0

    @classmethod
    def of(cls, tensors: Mapping[str, LazyTensor], logit_divisor: float = 1.0) -> RealWeights:
        """Take the tensors of a checkpoint (`ModelHandle.tensors`)."""
        return cls(tensors={graph_name(name): each for name, each in tensors.items()}, logit_divisor=logit_divisor)

    def __getitem__(self, name: str) -> Float32:
        """Read one weight."""
        values = self.tensors[name].read()
        return values / np.float32(self.logit_divisor) if name == "norm.weight" else values

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a weight, without reading it."""
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        """Name every weight."""
        return iter(self.tensors)

    def __len__(self) -> int:
        """Count the weights."""
        return len(self.tensors)


def rope_tables(architecture: Architecture, context_len: int) -> tuple[Float32, Float32]:
    """Return cosine and sine of shape (context, half of what is rotated of a head), the local ones beside them."""
    ropes = [architecture.rope] if architecture.local_rope is None else [architecture.rope, architecture.local_rope]
    half = architecture.rope.width(architecture.head_dim) // 2
    tables = [rope.tables(architecture.head_dim, context_len) for rope in ropes]
    cos, sin = (np.concatenate([each[part][:, :half] for each in tables], axis=1) for part in (0, 1))
    return cos, sin


def quantize_base(
    weights: Mapping[str, Float32],
    cos: Float32,
    sin: Float32,
    bits: Mapping[str, int],
    rounded: Mapping[str, ChannelWeight] | None = None,
) -> BaseWeights:
    """Quantize every matrix per output channel to `bits` (by tensor name); vectors stay float32.

    One weight is held at a time. Matrices in `rounded` are taken from there.
    """
    linears: dict[str, ChannelWeight] = {}
    vectors: dict[str, Float32] = {}
    for name in weights:
        if rounded is not None and name in rounded:
            linears[name] = rounded[name]
        elif (array := weights[name]).ndim == 2:
            linears[name] = quantize_channels(array, bits[name])
        else:
            vectors[name] = array
    return BaseWeights(linears=linears, vectors=vectors, cos=cos, sin=sin)
