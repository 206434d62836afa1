"""The module for an architecture: ExecuTorch's own Llama definition where it is one, else ours of its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_core.errors import ModelError
from lora_core.fast_lowering import import_executorch
from lora_core.models import hf_names
from lora_core.models.architecture import Architecture
from lora_core.models.executorch.names import BlockNames, block_names, is_llama, path_of
from lora_core.models.executorch.options import ExecutorchOptions

if TYPE_CHECKING:
    import torch


def build_structure(architecture: Architecture, options: ExecutorchOptions) -> torch.nn.Module:
    """Return ExecuTorch's `Transformer`, or our `FamilyDecoder` that is called as it is, in eval mode, its parameters
    on the meta device.

    Raises `ModelError` if the context asked for is one that the architecture cannot compute exactly.
    """
    import torch  # heavy

    if options.attention != "sdpa":
        import_executorch()  # what it is built of imports all of it anyway
    from executorch.examples.models.llama.llama_transformer import construct_transformer  # heavy
    from executorch.examples.models.llama.model_args import ModelArgs  # heavy

    check_options(architecture, options)
    if not is_llama(architecture, options.max_context_len):
        from lora_core.models.executorch.decoder import build_decoder

        return build_decoder(architecture, options, ModelArgs(**model_args(architecture, options)))
    if options.attention == "static":
        import executorch.examples.models.llama.static_attention  # noqa: F401 - registers the attention types
    with torch.device("meta"):
        module: torch.nn.Module = construct_transformer(ModelArgs(**model_args(architecture, options)))
        _add_biases(module, architecture, block_names(architecture, options))
    _set_rope(module, architecture)
    if options.attention == "custom_sdpa":
        _use_custom_sdpa(module)
        if options.cache_type != "fp32":
            from lora_core.models.executorch.key_value_caches import replace_caches

            replace_caches(module, options.cache_type)
    return module.requires_grad_(False).eval()


def check_options(architecture: Architecture, options: ExecutorchOptions) -> None:
    """Raise `ModelError` if `options` ask for a context that does not fit together or the architecture."""
    context, sequence = options.max_context_len, options.max_seq_len
    if sequence > context or sequence < 1:
        raise ModelError(f"max_seq_len ({sequence}) must be between 1 and max_context_len ({context}).")
    # The example input has three tokens and torch.export needs room above it (see inputs.py beside this).
    if options.dynamic_seq_len and options.attention != "static" and sequence < 5:
        raise ModelError(f"max_seq_len ({sequence}) must be at least 5 when the sequence length is dynamic.")
    if options.attention == "static" and architecture.delta is not None:
        raise ModelError("Some layers keep a state of their own, for which static attention has no inputs and outputs.")
    window = architecture.window
    if options.attention == "static" and window is not None and context > window:
        raise ModelError(
            f"max_context_len ({context}) is longer than the model's sliding attention window ({window}), which static "
            "attention does not support.",
            remedy=f"Ask for a context of at most {window} tokens.",
        )


def model_args(architecture: Architecture, options: ExecutorchOptions) -> dict[str, Any]:
    """Return the fields of ExecuTorch's `ModelArgs` for `architecture` and `options`."""
    static = options.attention == "static"
    arguments: dict[str, Any] = {
        "dim": architecture.dim,
        "hidden_dim": architecture.hidden_dim,
        "n_layers": architecture.layers,
        "n_heads": architecture.heads,
        "n_kv_heads": architecture.kv_heads,
        "head_dim": architecture.head_dim,
        "vocab_size": architecture.vocab_size,
        "norm_eps": architecture.norm_eps,
        "rope_theta": architecture.rope.theta,
        "use_hf_rope": True,
        "attention_qkv_bias": architecture.qkv_bias,
        "use_qk_norm": architecture.qk_norm,
        "qk_norm_before_rope": architecture.qk_norm,
        "max_seq_len": options.max_seq_len,
        "max_context_len": options.max_context_len,
        "generate_full_logits": options.full_logits,
        "use_kv_cache": not static,
        "use_sdpa_with_kv_cache_op": options.attention == "custom_sdpa",
        "enable_dynamic_shape": options.dynamic_seq_len and not static,
    }
    if architecture.delta is not None:
        arguments |= {
            "linear_num_key_heads": architecture.delta.key_heads,
            "linear_num_value_heads": architecture.delta.value_heads,
            "linear_key_head_dim": architecture.delta.key_dim,
            "linear_value_head_dim": architecture.delta.value_dim,
            "linear_conv_kernel_dim": architecture.delta.taps,
        }
    if architecture.experts is not None:
        arguments |= {
            "moe": True,
            "num_experts": architecture.experts.count,
            "num_activated_experts": architecture.experts.chosen,
            "moe_hidden_dim": architecture.experts.hidden_dim,
            "moe_score_func": "softmax" if architecture.experts.normalizes else "softmax_all",
        }
    if static:
        arguments["attention_type"] = "static_mha"
        arguments["num_kv_shared_layers"] = sum(kind.borrows for kind in architecture.kinds)
    divisors = architecture.rope.divisors(architecture.head_dim) if not architecture.beyond_llama else None
    if divisors is not None:
        # ExecuTorch 1.5.1 ignores use_scaled_rope when use_hf_rope is set (rope.py). Its LongRoPE path divides each
        # frequency by a given factor and multiplies the tables by another, which expresses any scaling that does not
        # depend on the sequence length.
        arguments["rope_scaling_short_factor"] = arguments["rope_scaling_long_factor"] = divisors
        arguments["rope_scaling_attention_factor"] = architecture.rope.scale
    return {**arguments, **architecture.definition}


def _add_biases(module: Any, architecture: Architecture, block: BlockNames) -> None:
    """Give a bias to the linear layers that have one here and not in ExecuTorch's definition (o_proj and the MLP)."""
    import torch  # heavy

    for layer in hf_names.layers(architecture):
        path = path_of(layer.name, block)
        if layer.has_bias and module.get_submodule(path).bias is None:
            parent, _, name = path.rpartition(".")
            wider = torch.nn.Linear(layer.in_features, layer.out_features, bias=True)
            setattr(module.get_submodule(parent), name, wider)


def _set_rope(module: Any, architecture: Architecture) -> None:
    """Replace the rotary tables by transformers' float32 angles and their correctly rounded cosines and sines."""
    import torch  # heavy

    tables = architecture.rope.tables(architecture.head_dim, module.rope.freqs_cos.shape[0])
    module.rope.freqs_cos, module.rope.freqs_sin = (torch.from_numpy(table) for table in tables)


def _use_custom_sdpa(module: Any) -> None:
    """Use `llama::custom_sdpa` and its KV cache; the attention first, as ExecuTorch's own exporter does."""
    from executorch.examples.models.llama.source_transformation.custom_kv_cache import (  # heavy
        replace_kv_cache_with_custom_kv_cache,
    )
    from executorch.examples.models.llama.source_transformation.sdpa import replace_sdpa_with_custom_op  # heavy

    replace_sdpa_with_custom_op(module)
    replace_kv_cache_with_custom_kv_cache(module)
