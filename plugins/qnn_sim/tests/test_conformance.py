"""The simulator passes the conformance kit for everything it declares."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_core
from lora_core.capability import Capability
from lora_core.errors import UsageError
from lora_core.hub import PluginHub
from lora_core.testing.conformance import conform
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint


def test_the_simulator_conforms() -> None:
    report = conform("qnn_sim", policies=("w8a16",))
    assert report.passed, report
    assert len(report.results) >= 35


def test_the_descriptor_declares_what_is_there() -> None:
    spec = PluginHub().backends["qnn_sim"]
    assert spec.capabilities == {Capability.EXPORT, Capability.LINK, Capability.RUN, Capability.STRENGTH}
    assert spec.policies == ("w8a16", "w4a16", "w8a8")
    assert spec.embeddings
    assert spec.session_options is None


@pytest.mark.parametrize("name", ["forward", "Default_Adapter", "pirate_encodings", "pirate_weights"])
def test_names_of_the_simulators_own_methods_and_sections_are_refused(tmp_path: Path, name: str) -> None:
    model, adapter = write_tiny_checkpoint(tmp_path / "model"), write_tiny_adapter(tmp_path / "adapter", seed=1)
    with pytest.raises(UsageError, match=f"Adapter name {name!r} is reserved"):
        lora_core.export(model, adapters={name: adapter}, backend="qnn_sim", policy="w8a16", out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
