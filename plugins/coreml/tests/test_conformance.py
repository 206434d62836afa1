"""The backend passes the conformance kit for everything it declares."""

from lora_core.capability import Capability
from lora_core.hub import PluginHub
from lora_core.testing.conformance import conform


def test_the_backend_conforms() -> None:
    report = conform("coreml", policies=("fp16",))
    assert report.passed, report
    assert len(report.results) >= 12


def test_the_descriptor_declares_what_is_there() -> None:
    spec = PluginHub().backends["coreml"]
    assert spec.capabilities == {Capability.EXPORT, Capability.LINK, Capability.EVALUATE}
    assert spec.policies == ("fp16", "c4w", "b4w", "emb8", "emb4")
