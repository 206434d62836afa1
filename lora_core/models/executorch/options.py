"""What a backend that lowers with ExecuTorch asks of a decoder."""

from __future__ import annotations

from typing import Literal

import attrs

from lora_core.models.base import ModelOptions

KEEPS_STATE = "use_recurrent_state"
"""The metadata by which a program says that it keeps more than keys and values: what was fed cannot be taken back."""

Attention = Literal["custom_sdpa", "sdpa", "static"]


@attrs.frozen(kw_only=True)
class ExecutorchOptions(ModelOptions):
    """`attention` is `custom_sdpa` (ExecuTorch's `llama::custom_sdpa` with its KV cache), `sdpa` (plain torch operators
    with ExecuTorch's KV cache) or `static` (ExecuTorch's static attention for the Neural Engine, caches as inputs and
    outputs).
    """

    attention: Attention = "custom_sdpa"

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
