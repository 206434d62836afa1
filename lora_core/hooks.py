"""What lora-core itself brings, registered through the same hooks as any plugin."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.hookspecs import hookimpl
from lora_core.specs import AdapterFormatSpec, ModelSourceSpec


@hookimpl
def lora_core_register_model_sources() -> Sequence[ModelSourceSpec]:
    """Return the Hugging Face checkpoint source."""
    return [
        ModelSourceSpec(
            name="huggingface",
            summary="Hugging Face checkpoint directory, or a hub id in the local cache",
            target="lora_core.models.huggingface:HuggingFaceSource",
        )
    ]


@hookimpl
def lora_core_register_adapter_formats() -> Sequence[AdapterFormatSpec]:
    """Return the PEFT directory format."""
    return [
        AdapterFormatSpec(
            name="peft",
            summary="PEFT directory: adapter_config.json and adapter_model.safetensors",
            target="lora_core.adapters.peft:PeftFormat",
        )
    ]
