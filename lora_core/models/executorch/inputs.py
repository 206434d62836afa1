"""What `torch.export` and ExecuTorch's runners need to know of ExecuTorch's Llama: inputs, shapes, metadata."""

from __future__ import annotations

from typing import Any

from lora_core.layers import ModelSummary
from lora_core.models.executorch.options import KEEPS_STATE, ExecutorchOptions


def example_args(module: Any, options: ExecutorchOptions) -> tuple[Any, ...]:
    """Return example inputs as `Transformer.forward` takes them: tokens and the attention options.

    As ExecuTorch's own exporter chooses them; static attention gets `max_seq_len` tokens a call (1 if that would
    leave no room for a cache) and its caches, masks and rotary tables.
    """
    import torch  # heavy

    if options.attention == "static":
        return _static_args(module, options)
    if options.dynamic_seq_len:
        return torch.tensor([[2, 3, 4]]), {"input_pos": torch.tensor([0])}
    return torch.tensor([[1]]), {"input_pos": torch.tensor([0])}


def dynamic_shapes(options: ExecutorchOptions) -> Any:
    """Return the dynamic shapes that go with `example_args`, or None if all are static."""
    import torch  # heavy

    if options.attention == "static" or not options.dynamic_seq_len:
        return None
    # One less than the maximum, as ExecuTorch's builder.py has it: torch.export cannot prove the last one.
    return {1: torch.export.Dim("token_dim", max=options.max_seq_len - 1)}, {"input_pos": {0: 1}}


def metadata(
    summary: ModelSummary, layers: int, options: ExecutorchOptions, *, keeps_state: bool = False
) -> dict[str, Any]:
    """Return what ExecuTorch's LLM runners read, by the names they read it under, and `KEEPS_STATE` where it holds."""
    methods: dict[str, Any] = {
        "get_max_seq_len": options.max_seq_len,
        "get_max_context_len": options.max_context_len,
        "get_n_layers": layers,
        "get_vocab_size": summary.vocab_size,
        "use_kv_cache": options.attention != "static",
        "use_sdpa_with_kv_cache": options.attention == "custom_sdpa",
        "enable_dynamic_shape": options.dynamic_seq_len and options.attention != "static",
    }
    if summary.bos_id is not None:
        methods["get_bos_id"] = summary.bos_id
    if summary.eos_ids:
        methods["get_eos_ids"] = list(summary.eos_ids)
    return methods | ({KEEPS_STATE: 1} if keeps_state else {})


def static_states(module: Any, caches: tuple[dict[str, Any], ...], dtype: Any) -> dict[str, Any]:
    """Return the options of static attention that have states: those of `caches` of keys and values that the layers
    have, at their sizes, and zeros for layers that convolve, if there are any.
    """
    import torch  # heavy

    shapes = getattr(module, "conv_states", {})
    sizes = getattr(module, "cache_sizes", None)
    kept = caches if sizes is None else tuple(_own_caches(some, sizes) for some in caches)
    if not shapes:
        return {"in_cache_state": kept}
    return {
        "in_cache_state": kept,
        "in_conv_state": {key: torch.zeros(shape, dtype=dtype) for key, shape in shapes.items()},
    }


def _own_caches(caches: dict[str, Any], sizes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Return `caches` (1, heads, length, head_dim) of those that `sizes` names, each of its own heads and width."""
    return {
        key: each.new_zeros(each.shape[0], sizes[key][0], each.shape[2], sizes[key][1])
        for key, each in caches.items()
        if key in sizes
    }


def _static_args(module: Any, options: ExecutorchOptions) -> tuple[Any, ...]:
    import torch  # heavy
    from executorch.examples.models.llama.static_attention import StaticAttentionIOManager  # heavy

    length = options.max_seq_len if options.max_seq_len < options.max_context_len else 1
    manager = StaticAttentionIOManager(
        module.params,
        input_len=length,
        cache_lens=options.max_context_len - length,
        batch_size=1,
        dtype=torch.float32,
        style="smart_mask",
        mask_val=float("-inf"),
    )
    attention = {
        "masks": manager.masks,
        "freqs_cos_override": module.rope.freqs_cos[:length],
        "freqs_sin_override": module.rope.freqs_sin[:length],
        **static_states(module, (manager.k_caches, manager.v_caches), torch.float32),
    }
    if not options.full_logits:
        attention["last_valid_token_pos"] = torch.tensor([length - 1])
    return torch.zeros(1, length, dtype=torch.int32), attention
