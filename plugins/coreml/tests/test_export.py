"""A program with adapters: its methods, and what a link adds to it."""

from lora_core_coreml.storage import pte

from lora_core.bundle.bundle import Bundle


def test_every_adapter_is_a_method_beside_forward(bundle: Bundle) -> None:
    program = pte.read(bundle.path / "model.pte").program
    names = {plan["name"] for plan in program["execution_plan"]}
    assert {"forward", "shout", "pirate", "adapters", "adapter_methods", "kv_cache_specs"} <= names
    assert not [name for name in names if "template" in name]
