"""Backends are imported when they are asked for, and blamed for what they raise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lora_core.adapters.format import Claim
from lora_core.backend import Backend
from lora_core.errors import AdapterError, PluginError, StorageError, UsageError
from lora_core.hub import PluginHub
from tests.hub.conftest import good

HubOf = Callable[[Mapping[str, str]], PluginHub]

BACKEND = """
from lora_core.backend import Artifacts, Backend, Diagnosis
from lora_core.errors import AdapterError

class Made(Backend):
    extra = "its own"
    def diagnose(self): return Diagnosis()
    def check(self, job): raise KeyError("lost")
    def export(self, job, out, emit): raise OSError(28, "No space left on device", "/full")
    def link(self, bundle, adapters, out, emit): raise AdapterError("ours")
    def links_independently(self, bundle): return True
    @property
    def sharing(self): raise ZeroDivisionError("division")
"""
OPTIONS = """
import attrs

@attrs.frozen(kw_only=True)
class Options:
    size: int = attrs.field(default=1, validator=attrs.validators.ge(1), metadata={"help": "How large."})
    kind: str = attrs.field(default="a", validator=attrs.validators.in_(("a", "b")), metadata={"help": "Which."})
"""


@pytest.fixture
def hub(site: Path, hub_of: HubOf) -> PluginHub:
    (site / "made_fine_backend.py").write_text(BACKEND, encoding="utf-8")
    (site / "made_fine_options.py").write_text(OPTIONS, encoding="utf-8")
    return hub_of({"fine": good("fine")})


def test_discovery_imports_no_backend(hub: PluginHub) -> None:
    assert "fine" in hub.backends
    assert "made_fine_backend" not in sys.modules
    hub.backend("fine")
    assert "made_fine_backend" in sys.modules


def test_foreign_exception_names_plugin_and_distribution_and_keeps_its_cause(hub: PluginHub) -> None:
    with pytest.raises(PluginError, match=r"[Cc]heck of backend 'fine' .*made-fine 1.0.*KeyError: 'lost'") as raised:
        hub.backend("fine").check(None)
    assert isinstance(raised.value.__cause__, KeyError)


def test_foreign_exception_of_a_property_is_blamed_too(hub: PluginHub) -> None:
    with pytest.raises(PluginError, match=r"made-fine 1\.0"):
        _ = hub.backend("fine").sharing


def test_full_disk_inside_a_plugin_is_a_storage_error(hub: PluginHub) -> None:
    with pytest.raises(StorageError, match="No space left"):
        hub.backend("fine").export(None, Path(), lambda event: None)


def test_errors_of_our_tree_pass_unchanged(hub: PluginHub) -> None:
    with pytest.raises(AdapterError, match=r"^ours"):
        hub.backend("fine").link(None, (), Path(), lambda event: None)


def test_the_guard_leaves_everything_else_as_it_is(hub: PluginHub) -> None:
    backend = hub.backend("fine")
    assert isinstance(backend, Backend)
    assert type(backend).__name__ == "Made"
    assert backend.extra == "its own"
    assert backend.links_independently(None) is True


def test_every_public_method_of_the_interface_is_guarded(hub: PluginHub) -> None:
    made = type(hub.backend("fine"))
    assert {name for name in dir(Backend) if not name.startswith("_")} <= set(vars(made))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_module", "no_such_module"),
        ("x = 1", "Made"),
        ("class Made: pass", "is not a lora_core.backend.Backend"),
        (BACKEND + "    def __init__(self): raise RuntimeError('not today')", "not today"),
    ],
)
def test_backend_that_cannot_be_made_is_the_plugins_fault(
    source: str, expected: str, site: Path, hub_of: HubOf
) -> None:
    (site / "made_fine_backend.py").write_text(source, encoding="utf-8")
    hub = hub_of({"fine": good("fine")})
    with pytest.raises(PluginError) as raised:
        hub.backend("fine")
    assert expected in str(raised.value)
    assert "made-fine 1.0" in str(raised.value)


def test_missing_requirements_are_all_named_with_the_way_to_install_them(site: Path, hub_of: HubOf) -> None:
    (site / "made_fine_backend.py").write_text(BACKEND, encoding="utf-8")
    more = ", requires={'no-such-dist': '1.0', 'attrs': '0.1', 'click': ''}, install_hint='pip install fine[all]'"
    hub = hub_of({"fine": good("fine", more=more)})
    with pytest.raises(PluginError) as raised:
        hub.backend("fine")
    assert len(raised.value.problems) == 2
    assert "no-such-dist 1.0, which is not installed" in str(raised.value)
    assert "attrs 0.1, but" in str(raised.value)
    assert str(raised.value).count("pip install fine[all]") == 2
    assert isinstance(hub.backend("fine", check_requirements=False), Backend)


def test_options_are_made_by_name(hub: PluginHub) -> None:
    made = hub.options("fine", {"size": 3})
    assert (made.size, made.kind) == (3, "a")


def test_everything_wrong_with_options_is_reported_together(hub: PluginHub) -> None:
    with pytest.raises(UsageError) as raised:
        hub.options("fine", {"size": 0, "kind": "c", "sise": 4})
    assert len(raised.value.problems) == 3
    assert "Did you mean 'size'?" in str(raised.value)


def test_the_core_registers_its_own_through_the_same_hooks() -> None:
    hub = PluginHub([])
    assert hub.faults == ()
    assert "fp32" in hub.policies
    assert hub.adapter_format("peft").sniff(Path("/nowhere")) is Claim.NO
    assert hub.model_source("huggingface").sniff("/nowhere/at/all") is False
    assert {"llama", "qwen3"} <= set(hub.model_families)
    assert {"export", "add", "doctor"} <= set(hub.commands)
