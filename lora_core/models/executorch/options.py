"""What a backend that lowers with ExecuTorch asks of a decoder."""

from __future__ import annotations

from typing import Literal

import attrs

from lora_core.models.base import ModelOptions

KEEPS_STATE = "use_recurrent_state"
"""The metadata by which a program says that it keeps more than keys and values: what was fed cannot be taken back."""

Attention = Literal["custom_sdpa", "sdpa", "static"]
CacheType = Literal["fp32", "fp16", "int8"]
CACHE_TYPES: tuple[CacheType, ...] = ("fp32", "fp16", "int8")


@attrs.frozen(kw_only=True)
class ExecutorchOptions(ModelOptions):
    """`attention` is `custom_sdpa` (ExecuTorch's `llama::custom_sdpa` with its KV cache), `sdpa` (plain torch operators
    with ExecuTorch's KV cache) or `static` (ExecuTorch's static attention for the Neural Engine, caches as inputs and
    outputs). `cache_type` is the type of keys and values in the cache; other than `fp32` it is for `custom_sdpa` and
    what `names.is_llama` says, whose caches are then those of `key_value_caches.py`.
    """

    attention: Attention = "custom_sdpa"
    cache_type: CacheType = "fp32"

    @classmethod
    def of(cls, options: ModelOptions) -> ExecutorchOptions:
        """Return `options` themselves, or plain ones with plain torch operators for the attention."""
        if isinstance(options, cls):
            return options
        return cls(
            max_context_len=options.max_context_len,
            max_seq_len=options.max_seq_len,
            full_logits=options.full_logits,
            dynamic_seq_len=options.dynamic_seq_len,
            attention="sdpa",
        )
