"""A base model as data: its layers by the names that adapters use, and what is known of it without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs


@attrs.frozen(kw_only=True)
class LayerInfo:
    """One layer of the base that can be quantized or carry an adapter's update.

    `name` is the layer's name as adapters spell it (Hugging Face: `model.layers.0.self_attn.q_proj`). For an embedding,
    `in_features` is the number of rows and `out_features` the width. `is_output` marks the output head, which PEFT's
    `all-linear` leaves out. `tied_to` names the layer whose weight this one shares, if any.
    """

    name: str
    kind: Literal["linear", "embedding"]
    in_features: int
    out_features: int
    has_bias: bool = False
    is_output: bool = False
    tied_to: str | None = None


@attrs.frozen(kw_only=True)
class ModelSummary:
    """What is known of a base without reading its weights; plain data that goes into a bundle's manifest.

    `family` names the architecture (`llama`, `mistral`, `qwen2`, `qwen3`, or `module` for a caller's own nn.Module; a
    generic source has names of its own).
    `module_names` are all module names as adapters spell them, in the model's own order: PEFT matches its patterns
    against these. `identities` are the names under which adapters may call this base (hub id, directory name).
    `eos_ids` end generation. `context_len` is what the model was trained for, if known.
    """

    name: str
    family: str
    layers: tuple[LayerInfo, ...]
    module_names: tuple[str, ...]
    identities: tuple[str, ...] = ()
    config: Mapping[str, Any] = attrs.field(factory=dict)
    context_len: int | None = None
    vocab_size: int | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def layer(self, name: str) -> LayerInfo:
        """Return the layer called `name`; KeyError if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)
