"""What lora-core itself brings, registered through the same hooks as any plugin."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.hookspecs import hookimpl
from lora_core.models.families import ModelFamily
from lora_core.models.supported_families import FAMILIES
from lora_core.quant.policies import POLICIES
from lora_core.quant.policy import QuantPolicy
from lora_core.specs import AdapterFormatSpec, CommandSpec, ExecutorSpec, ModelSourceSpec

COMMANDS = {
    "export": "Export a model with its adapters to a bundle.",
    "add": "Link adapters into a bundle, in milliseconds.",
    "remove": "Remove adapters from a bundle.",
    "convert": "Write an adapter of any format as PEFT saves it.",
    "fit-adapter": "Let an adapter make up for a rounded base.",
    "list": "List adapters of a directory and what they fit.",
    "pack": "Write one adapter as a package.",
    "pack-all": "Write a package for every adapter of a source.",
    "ship": "Split a bundle into the app's part and packages.",
    "inspect": "Show files, methods, adapters and the sharing proof.",
    "verify": "Compare a bundle's numbers with a reference.",
    "run": "Generate text from a bundle.",
    "bench": "Measure loading, speed and memory of a bundle.",
    "backends": "List backends, and plugins that are broken.",
    "doctor": "Say what works on this machine and what is missing.",
    "conform": "Run the conformance kit against a backend.",
}


@hookimpl
def lora_core_register_commands() -> Sequence[CommandSpec]:
    """Return the commands of the core."""
    return [
        CommandSpec(name=name, summary=summary, target=f"lora_core.cli.commands.{name.replace('-', '_')}:command")
        for name, summary in COMMANDS.items()
    ]


@hookimpl
def lora_core_register_executors() -> Sequence[ExecutorSpec]:
    """Return the executor of this machine."""
    return [
        ExecutorSpec(
            name="local", summary="processes on this machine", target="lora_core.processes.local:LocalExecutor"
        )
    ]


@hookimpl
def lora_core_register_model_families() -> Sequence[ModelFamily]:
    """Return the families of decoders that the core knows."""
    return FAMILIES


@hookimpl
def lora_core_register_model_sources() -> Sequence[ModelSourceSpec]:
    """Return the sources of Hugging Face checkpoints and of GGUF files."""
    return [
        ModelSourceSpec(
            name="huggingface",
            summary="Hugging Face checkpoint directory, or a hub id in the local cache",
            target="lora_core.models.hf:HfModelSource",
        ),
        ModelSourceSpec(
            name="gguf",
            summary="GGUF file of a whole model, or a directory with a single one",
            target="lora_core.models.gguf.source:GgufModelSource",
        ),
    ]


@hookimpl
def lora_core_register_quant_policies() -> Sequence[QuantPolicy]:
    """Return the policies that belong to no backend."""
    return POLICIES


@hookimpl
def lora_core_register_adapter_formats() -> Sequence[AdapterFormatSpec]:
    """Return the formats of PEFT, MLX-LM and llama.cpp."""
    return [
        AdapterFormatSpec(
            name="peft",
            summary="PEFT directory: adapter_config.json and adapter_model.safetensors",
            target="lora_core.adapters.peft.format:PeftFormat",
        ),
        AdapterFormatSpec(
            name="mlx-lm",
            summary="MLX-LM directory: adapter_config.json and adapters.safetensors",
            target="lora_core.adapters.mlx_lm.format:MlxLmFormat",
        ),
        AdapterFormatSpec(
            name="gguf",
            summary="LoRA in a GGUF file, as llama.cpp has it",
            target="lora_core.adapters.gguf.format:GgufFormat",
        ),
    ]
