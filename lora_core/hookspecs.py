"""The hooks a plugin may implement (pluggy). Implementations return data, in a few lines, without I/O."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from lora_core.events import Event
from lora_core.models.families import ModelFamily
from lora_core.quant.policy import QuantPolicy
from lora_core.specs import AdapterFormatSpec, BackendSpec, CommandSpec, ExecutorSpec, ModelSourceSpec

ENTRY_POINT_GROUP = "lora_core"

hookspec = pluggy.HookspecMarker("lora_core")
hookimpl = pluggy.HookimplMarker("lora_core")


@hookspec
def lora_core_register_backends() -> Sequence[BackendSpec]:  # type: ignore[empty-body]
    """Return the backends this plugin offers.

    Asked whenever a hub is made, so also for `--help`: what a spec names is imported when the backend is used. A name
    that another plugin claims too goes to neither.
    """


@hookspec
def lora_core_register_model_sources() -> Sequence[ModelSourceSpec]:  # type: ignore[empty-body]
    """Return the model sources this plugin offers.

    What `--model` names is opened by the first source that knows it, the core's own (`huggingface`) first.
    """


@hookspec
def lora_core_register_model_families() -> Sequence[ModelFamily]:  # type: ignore[empty-body]
    """Return the families of Hugging Face models this plugin adds to those of the core.

    A family says how the configuration of an architecture is read; the core's source then opens its checkpoints.
    """


@hookspec
def lora_core_register_adapter_formats() -> Sequence[AdapterFormatSpec]:  # type: ignore[empty-body]
    """Return the adapter formats this plugin offers.

    Every format is asked how sure it is of a directory (`lora_core.adapters.format.Claim`). The surest reads it; of
    equally sure ones a plugin's goes before the core's.
    """


@hookspec
def lora_core_register_quant_policies() -> Sequence[QuantPolicy]:  # type: ignore[empty-body]
    """Return the quantization policies this plugin offers.

    Policies are data and belong to no backend: any backend that lists a policy's name can be asked for it.
    """


@hookspec
def lora_core_register_commands() -> Sequence[CommandSpec]:  # type: ignore[empty-body]
    """Return the commands this plugin adds to the command line.

    `--help` lists them with the plugin's distribution. `lora_core.cli.command.Command` is the class to derive from.
    """


@hookspec
def lora_core_register_executors() -> Sequence[ExecutorSpec]:  # type: ignore[empty-body]
    """Return the executors this plugin offers: other processes or machines for `lora-core pack-all`."""


@hookspec
def lora_core_on_event(event: Event) -> None:
    """Hear every event of the running command.

    Called in the order of the events (`lora_core.events`), in the thread that emits them. A listener that raises is
    reported once, and hears nothing more.
    """
