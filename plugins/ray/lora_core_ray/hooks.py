"""What the plugin offers: descriptors only."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.hookspecs import hookimpl
from lora_core.specs import ExecutorSpec


@hookimpl
def lora_core_register_executors() -> Sequence[ExecutorSpec]:
    """Offer Ray."""
    return [
        ExecutorSpec(
            name="ray",
            summary="Ray, started on this machine or the cluster at --address",
            target="lora_core_ray.executor:RayExecutor",
            install_hint="pip install lora-core-ray",
        )
    ]
