"""The hooks a plugin may implement (pluggy). Implementations return data, in a few lines, without I/O."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from lora_core.events import Event
from lora_core.models.families import ModelFamily
from lora_core.quant.policy import QuantPolicy
from lora_core.specs import AdapterFormatSpec, BackendSpec, CommandSpec, ModelSourceSpec

ENTRY_POINT_GROUP = "lora_core"

hookspec = pluggy.HookspecMarker("lora_core")
hookimpl = pluggy.HookimplMarker("lora_core")


@hookspec
def lora_core_register_backends() -> Sequence[BackendSpec]:  # type: ignore[empty-body]
    """Return the backends this plugin offers."""


@hookspec
def lora_core_register_model_sources() -> Sequence[ModelSourceSpec]:  # type: ignore[empty-body]
    """Return the model sources this plugin offers."""


@hookspec
def lora_core_register_model_families() -> Sequence[ModelFamily]:  # type: ignore[empty-body]
    """Return the families of Hugging Face models this plugin adds to those of the core."""


@hookspec
def lora_core_register_adapter_formats() -> Sequence[AdapterFormatSpec]:  # type: ignore[empty-body]
    """Return the adapter formats this plugin offers."""


@hookspec
def lora_core_register_quant_policies() -> Sequence[QuantPolicy]:  # type: ignore[empty-body]
    """Return the quantization policies this plugin offers."""


@hookspec
def lora_core_register_commands() -> Sequence[CommandSpec]:  # type: ignore[empty-body]
    """Return the commands this plugin adds to the command line."""


@hookspec
def lora_core_on_event(event: Event) -> None:
    """Hear every event of the running command."""
