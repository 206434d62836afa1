"""What this plugin offers; importing it imports nothing heavy."""

from lora_core.capability import Capability
from lora_core.hookspecs import hookimpl
from lora_core.specs import BackendSpec, ReservedNames


@hookimpl
def lora_core_register_backends():
    return [
        BackendSpec(
            name="tiny",
            summary="Safetensors files that a Llama in NumPy runs",
            target="lora_core_tiny.backend:TinyBackend",
            options="lora_core_tiny.options:TinyOptions",
            capabilities=frozenset({Capability.EXPORT, Capability.LINK, Capability.RUN}),
            policies=("fp32", "8da8w"),
            slot_plans=False,  # adapters are stored at their own ranks
            reserved=ReservedNames(names=frozenset({"forward"})),  # the base's method
            requires={"numpy": "", "safetensors": ""},
            install_hint="pip install lora-core-tiny",
        )
    ]
