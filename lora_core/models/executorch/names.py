"""ExecuTorch's names for the layers and normalizations of a decoder, beside those of the checkpoint."""

from __future__ import annotations

import attrs

from lora_core.models import hf_names
from lora_core.models.architecture import Architecture
from lora_core.models.executorch.options import ExecutorchOptions


@attrs.frozen(kw_only=True)
class BlockNames:
    """ExecuTorch's module names inside one block, for one kind of attention."""

    q: str = "attention.wq"
    k: str = "attention.wk"
    v: str = "attention.wv"
    q_norm: str = "attention.q_norm_fn"
    k_norm: str = "attention.k_norm_fn"

    @property
    def modules(self) -> dict[str, str]:
        """Names in a block of the checkpoint, each with ExecuTorch's."""
        return {
            "self_attn.q_proj": self.q,
            "self_attn.k_proj": self.k,
            "self_attn.v_proj": self.v,
            "self_attn.o_proj": "attention.wo",
            "self_attn.q_norm": self.q_norm,
            "self_attn.k_norm": self.k_norm,
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "ffn_norm",
        }


MULTI_HEAD = BlockNames()
STATIC = BlockNames(
    q="attention.wqs.0",
    k="attention.wks.0",
    v="attention.wvs.0",
    q_norm="attention.q_norm",
    k_norm="attention.k_norm",
)
_OUTSIDE = {hf_names.EMBEDDING: "tok_embeddings", hf_names.OUTPUT: "output", hf_names.FINAL_NORM: "norm"}


def block_names(options: ExecutorchOptions) -> BlockNames:
    """Return the names for the kind of attention that `options` ask for."""
    return STATIC if options.attention == "static" else MULTI_HEAD


def path_of(name: str, block: BlockNames) -> str:
    """Return ExecuTorch's name of the module that the checkpoint calls `name`."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
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
    names.update({f"{path_of(norm, block)}.weight": f"{norm}.weight" for norm in hf_names.norms(architecture)})
    return names
