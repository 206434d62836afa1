"""The simulator passes the conformance kit for everything it declares."""

from __future__ import annotations

from lora_core.capability import Capability
from lora_core.hub import PluginHub
from lora_core.testing.conformance import conform


def test_the_simulator_conforms() -> None:
    report = conform("qnn_sim", policies=("w8a16",))
    assert report.passed, report
    assert len(report.results) >= 12


def test_the_descriptor_declares_what_is_there() -> None:
    spec = PluginHub().backends["qnn_sim"]
    assert spec.capabilities == {Capability.EXPORT, Capability.LINK, Capability.RUN}
    assert spec.policies == ("w8a16", "w4a16", "w8a8")
