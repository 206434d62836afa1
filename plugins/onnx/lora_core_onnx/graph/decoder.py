"""The decoder of Llama's kind as ONNX, in the operators and names that onnxruntime-genai's own builder uses.

Activations are matrices of (tokens, features), one text at a time: so `Gemm` reads weights as checkpoints store them,
an output head tied to the embedding is one tensor, and adding what LoRA gives costs no node of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from lora_core.layers import LayerInfo
from lora_core.models.architecture import Architecture
from lora_core.quant.policy import Scheme
from lora_core_onnx.graph.assembly import Assembly
from lora_core_onnx.graph.weights import StoredBase
from lora_core_onnx.names import lora_input
from lora_core_onnx.quant import HALF

FLOAT, INT32, INT64 = 1, 6, 7
"""Values of `onnx.TensorProto.DataType`."""
EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"
CALL, PAST, TOTAL = "sequence_length", "past_sequence_length", "total_sequence_length"


@attrs.frozen(kw_only=True)
class DecoderSpec:
    """What the graph is made from: `schemes` by layer name (None: float32), `lora` says whether layers carry inputs."""

    architecture: Architecture
    layers: Sequence[LayerInfo]
    schemes: Mapping[str, Scheme | None]
    context_len: int
    lora: bool


class DecoderGraph:
    """Adds a decoder to `assembly`, its weights to those of `weights`, in the order in which they are needed."""

    def __init__(self, spec: DecoderSpec, assembly: Assembly, weights: StoredBase) -> None:
        self._spec, self._graph, self._weights = spec, assembly, weights
        self._layers = {layer.name: layer for layer in spec.layers}

    def assemble(self) -> None:
        """Add everything from `input_ids` to `logits`."""
        graph, size = self._graph, self._spec.architecture
        ids = graph.input("input_ids", INT64, (1, CALL))
        lengths = self._lengths()
        tokens = graph.apply("Squeeze", (ids, graph.integers("axis.0", (0,))), "tokens")
        residual = self._embedding(tokens)
        rotary = self._rotary()
        states = self._norm("model.layers.0.input_layernorm", residual)
        for index in range(size.layers):
            name = f"model.layers.{index}"
            attended = self._attention(index, states, lengths, rotary)
            states, residual = self._skip_norm(f"{name}.post_attention_layernorm", residual, attended)
            following = f"model.layers.{index + 1}.input_layernorm" if index + 1 < size.layers else NORM
            states, residual = self._skip_norm(following, residual, self._mlp(f"{name}.mlp", states))
        last = graph.apply("Gather", (states, graph.integers("last", (-1,))), "last_state", {"axis": 0})
        logits = self._linear(HEAD, last)
        graph.apply("Unsqueeze", (logits, graph.integers("axis.0", (0,))), "logits")
        graph.output("logits", FLOAT, (1, 1, size.vocab_size))

    def _embedding(self, tokens: str) -> str:
        stored, graph = f"{EMBEDDING}.weight", self._graph
        scheme = self._spec.schemes[EMBEDDING]
        if scheme is None:
            return graph.apply("Gather", (self._weights.plain(stored), tokens), f"{EMBEDDING}.out")
        if scheme.bits != HALF:
            packed = self._weights.packed(EMBEDDING, stored, scheme, by_rows=True)
            attributes = {"bits": packed.bits, "block_size": packed.block_size, "gather_axis": 0, "quantize_axis": 1}
            inputs = (packed.values, tokens, packed.scales)
            return graph.apply("GatherBlockQuantized", inputs, f"{EMBEDDING}.out", attributes)
        rows = graph.apply("Gather", (self._weights.half(stored), tokens), f"{EMBEDDING}.rows")
        return graph.apply("Cast", (rows,), f"{EMBEDDING}.out", {"to": FLOAT})

    def _lengths(self) -> tuple[str, str]:
        """Return what attention is told of `attention_mask`: the last position, and how many there are."""
        graph = self._graph
        mask = graph.input("attention_mask", INT64, (1, TOTAL))
        one = graph.integers("one", (1,))
        used = graph.apply("ReduceSum", (mask, one), "attention_mask.used", {"keepdims": 0})
        last = graph.apply("Sub", (used, one), "attention_mask.last")
        shape = graph.apply("Shape", (mask,), "attention_mask.shape")
        total = graph.apply("Gather", (shape, graph.integers("axis", 1)), "attention_mask.length")
        return (
            graph.apply("Cast", (last,), "seqlens_k", {"to": INT32}),
            graph.apply("Cast", (total,), "total_seq_len", {"to": INT32}),
        )

    def _rotary(self) -> tuple[str, str]:
        size = self._spec.architecture
        half = size.head_dim // 2
        cos, sin = size.rope.tables(size.head_dim, self._spec.context_len)
        return self._weights.table("cos_cache", cos[:, :half]), self._weights.table("sin_cache", sin[:, :half])

    def _norm(self, name: str, states: str) -> str:
        inputs = (states, self._weights.plain(f"{name}.weight"))
        attributes = {"axis": -1, "epsilon": self._spec.architecture.norm_eps, "stash_type": 1}
        return self._graph.apply("SimplifiedLayerNormalization", inputs, f"{name}.out", attributes)

    def _skip_norm(self, name: str, residual: str, added: str) -> tuple[str, str]:
        """Return the normalized sum, and the sum itself."""
        inputs = (residual, added, self._weights.plain(f"{name}.weight"))
        outputs = (f"{name}.out", "", "", f"{name}.sum")
        attributes = {"epsilon": self._spec.architecture.norm_eps}
        return self._graph.apply("SkipSimplifiedLayerNormalization", inputs, outputs, attributes), outputs[3]

    def _attention(self, index: int, states: str, lengths: tuple[str, str], rotary: tuple[str, str]) -> str:
        graph, size, name = self._graph, self._spec.architecture, f"model.layers.{index}.self_attn"
        query, key = (self._heads(name, part, states) for part in "qk")
        value = self._text(f"{name}.v_proj", self._linear(f"{name}.v_proj", states))
        past, present = [], []
        for part in ("key", "value"):
            past.append(graph.input(f"past_key_values.{index}.{part}", FLOAT, (1, size.kv_heads, PAST, size.head_dim)))
            present.append(f"present.{index}.{part}")
            graph.output(present[-1], FLOAT, (1, size.kv_heads, TOTAL, size.head_dim))
        attributes = {"num_heads": size.heads, "kv_num_heads": size.kv_heads, "do_rotary": 1, "rotary_interleaved": 0}
        inputs = (query, key, value, *past, *lengths, *rotary)
        mixed = graph.apply("GroupQueryAttention", inputs, (f"{name}.mixed", *present), attributes)
        flat = graph.apply("Squeeze", (mixed, graph.integers("axis.0", (0,))), f"{name}.flat")
        return self._linear(f"{name}.o_proj", flat)

    def _heads(self, name: str, part: str, states: str) -> str:
        """Return queries or keys as (1, tokens, heads * head size), normalized by head where the model does."""
        graph, size = self._graph, self._spec.architecture
        made = self._linear(f"{name}.{part}_proj", states)
        if not size.qk_norm:
            return self._text(f"{name}.{part}_proj", made)
        heads = size.heads if part == "q" else size.kv_heads
        apart = graph.integers("heads_apart", (-1, size.head_dim))
        split = graph.apply("Reshape", (made, apart), f"{name}.{part}_split")
        together = graph.integers(f"{part}_together", (1, -1, heads * size.head_dim))
        return graph.apply("Reshape", (self._norm(f"{name}.{part}_norm", split), together), f"{name}.{part}_joined")

    def _text(self, name: str, states: str) -> str:
        return self._graph.apply("Unsqueeze", (states, self._graph.integers("axis.0", (0,))), f"{name}.text")

    def _mlp(self, name: str, states: str) -> str:
        graph = self._graph
        gate, up = (self._linear(f"{name}.{part}_proj", states) for part in ("gate", "up"))
        sigmoid = graph.apply("Sigmoid", (gate,), f"{name}.sigmoid")
        activated = graph.apply("Mul", (gate, sigmoid), f"{name}.activated")
        return self._linear(f"{name}.down_proj", graph.apply("Mul", (activated, up), f"{name}.product"))

    def _linear(self, name: str, states: str) -> str:
        """Return what layer `name` makes of `states`, with the inputs for its update."""
        layer, graph = self._layers[name], self._graph
        out = self._base(layer, states)
        if not self._spec.lora:
            return out
        rank = f"{name}.rank"
        a = graph.optional_input(lora_input(name, "a"), FLOAT, (rank, layer.in_features))
        b = graph.optional_input(lora_input(name, "b"), FLOAT, (layer.out_features, rank))
        reduced = graph.apply("Gemm", (states, a), f"{name}.lora", {"transB": 1})
        return graph.apply("Gemm", (reduced, b, out), f"{name}.updated", {"transB": 1})

    def _widened(self, name: str, stored: str) -> str:
        # Folded when the model is loaded: processors without float16 arithmetic compute in float32 anyway.
        return self._graph.apply("Cast", (self._weights.half(stored),), f"{name}.weight.widened", {"to": FLOAT})

    def _base(self, layer: LayerInfo, states: str) -> str:
        name, graph = layer.name, self._graph
        stored = f"{layer.tied_to or name}.weight"
        bias = (self._weights.plain(f"{name}.bias"),) if layer.has_bias else ()
        scheme = self._spec.schemes[name]
        if scheme is None or scheme.bits == HALF:
            weight = self._weights.plain(stored) if scheme is None else self._widened(name, stored)
            return graph.apply("Gemm", (states, weight, *bias), f"{name}.out", {"transB": 1})
        packed = self._weights.packed(name, stored, scheme)
        inputs = (states, packed.values, packed.scales, *(("", "", *bias) if bias else ()))
        attributes = {
            "K": layer.in_features,
            "N": layer.out_features,
            "bits": packed.bits,
            "block_size": packed.block_size,
        }
        return graph.apply("MatMulNBits", inputs, f"{name}.out", attributes)
