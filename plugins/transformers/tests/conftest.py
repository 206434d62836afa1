"""A hub with the generic source and XNNPACK."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from lora_core.hub import PluginHub


@pytest.fixture(scope="session")
def hub() -> PluginHub:
    names = ("transformers", "xnnpack")
    return PluginHub([EntryPoint(name=name, value=f"lora_core_{name}.hooks", group="lora_core") for name in names])
