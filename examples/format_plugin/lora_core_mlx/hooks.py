"""What this plugin offers; importing it imports nothing heavy."""

from lora_core.hookspecs import hookimpl
from lora_core.specs import AdapterFormatSpec


@hookimpl
def lora_core_register_adapter_formats():
    return [
        AdapterFormatSpec(
            name="mlx",
            summary="MLX-LM directory: adapter_config.json and adapters.safetensors",
            target="lora_core_mlx.format:MlxFormat",
        )
    ]
