"""What this plugin offers; importing it imports nothing heavy."""

from lora_core.capability import Capability
from lora_core.hookspecs import hookimpl
from lora_core.specs import BackendSpec, ReservedNames


@hookimpl
def lora_core_register_backends():
    return [
        BackendSpec(
            name="plain",
            summary="Base and adapters as plain safetensors files",
            target="lora_core_plain.backend:PlainBackend",
            options="lora_core_plain.options:PlainOptions",
            capabilities=frozenset({Capability.EXPORT, Capability.LINK}),
            policies=("fp32",),
            slot_plans=False,
            reserved=ReservedNames(names=frozenset({"forward"})),
            requires={"safetensors": ""},
            install_hint="pip install lora-core-plain",
        )
    ]
