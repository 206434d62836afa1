"""ExecuTorch's names for the layers and normalizations of a decoder, beside those of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from lora_core.models import hf_names
from lora_core.models.architecture import Architecture
from lora_core.models.executorch.options import ExecutorchOptions


@attrs.frozen(kw_only=True)
class BlockNames:
    """ExecuTorch's module names inside one block, for one kind of attention and of norms.

    `spelling` are the checkpoint's own names by Llama's, where they are others.
    """

    q: str = "attention.wq"
    k: str = "attention.wk"
    v: str = "attention.wv"
    q_norm: str = "attention.q_norm_fn"
    k_norm: str = "attention.k_norm_fn"
    norms: Mapping[str, str] = attrs.field(factory=lambda: _NORMS["before"])
    spelling: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def modules(self) -> dict[str, str]:
        """Names in a block of the checkpoint, each with ExecuTorch's."""
        names = {
            "self_attn.q_proj": self.q,
            "self_attn.k_proj": self.k,
            "self_attn.v_proj": self.v,
            "self_attn.qkv_proj": "attention.wqkv",
            "self_attn.o_proj": "attention.wo",
            "conv.in_proj": "attention.in_proj",
            "conv.out_proj": "attention.out_proj",
            **{f"linear_attn.{name}": f"attention.{name}" for name in _DELTA},
            "self_attn.q_norm": self.q_norm,
            "self_attn.k_norm": self.k_norm,
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
            "mlp.gate_up_proj": "feed_forward.w13",
            "mlp.down_proj": "feed_forward.w2",
            hf_names.INPUT_GATE: "layer_input.gate",
            hf_names.INPUT_PROJECTION: "layer_input.projection",
            hf_names.INPUT_NORM: "layer_input.norm",
            **self.norms,
        }
        return {self.spelling.get(name, name): path for name, path in names.items()}


_DELTA = ("out_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
_EXPERT = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
# Hugging Face's names for a norm say where its layer's author put it, not what it does.
_NORMS: Mapping[str, Mapping[str, str]] = {
    "before": {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"},
    "around": {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffn_norm",
    },
    "after": {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffn_norm"},
}
MULTI_HEAD = BlockNames()
STATIC = BlockNames(
    q="attention.wqs.0",
    k="attention.wks.0",
    v="attention.wvs.0",
    q_norm="attention.q_norm",
    k_norm="attention.k_norm",
)
_OUTSIDE = {
    hf_names.EMBEDDING: "tok_embeddings",
    hf_names.OUTPUT: "output",
    hf_names.FINAL_NORM: "norm",
    hf_names.LAYER_EMBEDDING: "layer_inputs.embeddings",
    hf_names.LAYER_PROJECTION: "layer_inputs.projection",
    hf_names.LAYER_NORM: "layer_inputs.norm",
}


def block_names(architecture: Architecture, options: ExecutorchOptions) -> BlockNames:
    """Return the names for the kinds of attention and norms that `architecture` and `options` ask for."""
    static = options.attention == "static" and is_llama(architecture, options.max_context_len)
    names = STATIC if static else MULTI_HEAD
    return attrs.evolve(names, norms=_NORMS[architecture.norms], spelling=architecture.names)


def is_llama(architecture: Architecture, context_len: int) -> bool:
    """Say whether ExecuTorch's own definition computes `architecture` exactly, in a context of `context_len` tokens.

    Of ExecuTorch 1.5.1's `ModelArgs`, what goes beyond Llama is read by its Qualcomm definition alone.
    """
    hidden = any(architecture.window_of(kind, context_len) is not None for kind in architecture.kinds)
    return not (architecture.beyond_llama or hidden)


def path_of(name: str, block: BlockNames) -> str:
    """Return ExecuTorch's name of the module that the checkpoint calls `name`."""
    outside = {block.spelling.get(known, known): path for known, path in _OUTSIDE.items()}
    if name in outside:
        return outside[name]
    index, _, inner = name.removeprefix(hf_names.BLOCKS).partition(".")
    return f"layers.{index}.{block.modules[inner]}"


def layer_paths(architecture: Architecture, block: BlockNames) -> dict[str, str]:
    """Return ExecuTorch's name of each layer, by the layer's name."""
    return {layer.name: path_of(layer.name, block) for layer in hf_names.layers(architecture)}


def parameter_names(architecture: Architecture, block: BlockNames) -> dict[str, str]:
    """Return ExecuTorch's parameter names, each with the checkpoint tensor it is filled from."""
    names: dict[str, str] = {}
    for layer in hf_names.layers(architecture):
        path = path_of(layer.name, block)
        names[f"{path}.weight"] = f"{layer.tied_to or layer.name}.weight"
        if layer.has_bias:
            names[f"{path}.bias"] = f"{layer.name}.bias"
    names.update(_mixing_parameters(architecture))
    names.update(_expert_parameters(architecture))
    names.update({scale.replace(hf_names.BLOCKS, "layers."): scale for scale in hf_names.layer_scales(architecture)})
    names.update({f"{path_of(norm, block)}.weight": f"{norm}.weight" for norm in hf_names.norms(architecture)})
    return names


def _expert_parameters(architecture: Architecture) -> dict[str, str]:
    """Return the parameters of experts and of what chooses them, each with its tensor."""
    names = {router.replace("mlp.gate", "feed_forward.gate"): router for router in hf_names.routers(architecture)}
    for together in hf_names.expert_tensors(architecture):
        block, _, last = together.removesuffix(".weight").rpartition(f".{hf_names.EXPERTS}.")
        names[f"{block}.feed_forward.cond_ffn.{_EXPERT[last]}"] = together
    return {path.replace(hf_names.BLOCKS, "layers."): name for path, name in names.items()}


def _mixing_parameters(architecture: Architecture) -> dict[str, str]:
    """Return the parameters of what mixes tokens that are of no linear layer and no norm, each with its tensor.

    A convolution's weights are a tensor for each tap here.
    """
    names: dict[str, str] = {}
    for stored in hf_names.mixing_tensors(architecture):
        index, _, inner = stored.removeprefix(hf_names.BLOCKS).partition(".")
        path = f"layers.{index}.attention"
        if inner == hf_names.CONVOLUTION:
            names |= {f"{path}.taps.{tap}": hf_names.tap(stored, tap) for tap in range(architecture.taps)}
        elif inner == hf_names.CONVOLUTION_BIAS:
            names[f"{path}.bias"] = stored
        else:
            names[f"{path}.{inner.partition('.')[2]}"] = stored
    return names
