"""The backend passes the conformance kit for everything it declares."""

from lora_core.capability import Capability
from lora_core.hub import PluginHub
from lora_core.testing.conformance import conform

GAPS = {
    "context-length": "one method of 8 tokens a call caches 24 of 32 positions, so a single token fits up to the 25th",
}


def test_the_backend_conforms() -> None:
    report = conform("coreml", policies=("fp16",), known_gaps=GAPS, cache=True)
    assert report.passed, report
    assert len(report.results) >= 35


def test_the_descriptor_declares_what_is_there() -> None:
    spec = PluginHub().backends["coreml"]
    sessions = {Capability.EVALUATE, Capability.STRENGTH, Capability.BLEND}
    assert spec.capabilities == {Capability.EXPORT, Capability.LINK, *sessions}
    assert spec.policies == ("fp16", "c4w", "b4w", "emb8", "emb4")
