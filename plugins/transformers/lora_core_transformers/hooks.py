"""What the plugin offers: descriptors only."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.hookspecs import hookimpl
from lora_core.specs import ModelSourceSpec


@hookimpl
def lora_core_register_model_sources() -> Sequence[ModelSourceSpec]:
    """Offer the definitions of transformers."""
    return [
        ModelSourceSpec(
            name="transformers",
            summary="decoders and classifiers as transformers defines them, where no family covers them",
            target="lora_core_transformers.source:TransformersSource",
            generic=True,
        )
    ]
