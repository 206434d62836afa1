"""Faulty plugins are named with their distribution, and the others keep working."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lora_core.errors import PluginError, UsageError
from lora_core.events import Warned
from lora_core.hub import PluginHub
from tests.hub.conftest import good
from tests.hub.distributions import entry_points_of, install

HubOf = Callable[[Mapping[str, str]], PluginHub]

BROKEN = {
    "import error": ("import no_such_module_anywhere", "no_such_module_anywhere"),
    "syntax error": ("def (:", "SyntaxError"),
    "exception at import": ("raise RuntimeError('out of order')", "out of order"),
    "raising hook": (
        good("sick").replace("    return [", "    raise RuntimeError('hook is sick')\n    return ["),
        "hook is sick",
    ),
    "hook returns one spec": (
        good("sick").replace("return [", "return (").replace("}))]", "})))"),
        "a list was expected",
    ),
    "hook returns strings": (good("sick").replace("return [", "return ['sick'] + ["), "BackendSpec was expected"),
    "newer interface": (good("sick", more=", api_version=99"), "Update lora-core"),
    "older interface": (good("sick", more=", api_version=0"), "Update the plugin"),
    "misspelt hook": (
        good("sick").replace("lora_core_register_backends", "lora_core_register_backend"),
        "Did you mean 'lora_core_register_backends'?",
    ),
    "unmarked hook": (good("sick").replace("@hookimpl\n", ""), "not marked with @hookimpl"),
    "unmarked and misspelt hook": (
        good("sick").replace("@hookimpl\n", "").replace("register_backends", "regster_backends"),
        "there is no hook 'lora_core_regster_backends'",
    ),
    "argument that no hook has": (
        good("sick").replace("register_backends()", "register_backends(config)"),
        "does not match its specification",
    ),
    "argument with a default": (
        good("sick") + "\n@hookimpl\ndef lora_core_on_event(event=None):\n    pass\n",
        "so it is never filled",
    ),
    "no hooks": ("x = 1", "no hook of lora-core is implemented"),
    "wrong keyword in a spec": (good("sick", more=", colour='red'"), "colour"),
    "no name": (good(""), "without a name"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_faulty_plugin_is_named_and_the_others_work(case: str, hub_of: HubOf) -> None:
    source, expected = BROKEN[case]
    hub = hub_of({"fine": good("fine"), "sick": source, "well": good("well")})
    assert [str(fault) for fault in hub.faults if expected in str(fault)], hub.faults
    assert all("plugin 'sick' of made-sick 1.0" in str(fault).lower() for fault in hub.faults)
    assert {"fine", "well"} <= set(hub.backends)


@pytest.mark.parametrize("case", ["import error", "raising hook", "newer interface", "misspelt hook"])
def test_asking_for_a_backend_of_a_faulty_plugin_says_what_is_wrong_with_it(case: str, hub_of: HubOf) -> None:
    source, expected = BROKEN[case]
    hub = hub_of({"fine": good("fine"), "sick": source})
    with pytest.raises(PluginError) as raised:
        hub.backend("sick")
    assert "made-sick 1.0" in str(raised.value)
    assert expected in str(raised.value)


def test_plugin_with_an_idle_parameter_keeps_its_backends(hub_of: HubOf) -> None:
    assert "sick" in hub_of({"sick": BROKEN["argument with a default"][0]}).backends


def test_backend_name_claimed_twice_goes_to_nobody(hub_of: HubOf) -> None:
    hub = hub_of({"one": good("same"), "two": good("same"), "fine": good("fine")})
    assert list(hub.backends) == ["fine"]
    with pytest.raises(PluginError) as raised:
        hub.backend("same")
    assert "made-one 1.0" in str(raised.value)
    assert "made-two 1.0" in str(raised.value)


def test_plugin_name_claimed_twice_goes_to_nobody(site: Path) -> None:
    install(site, "made-one", {"same": "made_one"}, {"made_one.py": good("one")})
    install(site, "made-two", {"same": "made_two"}, {"made_two.py": good("two")})
    install(site, "made-fine", {"fine": "made_fine"}, {"made_fine.py": good("fine")})
    hub = PluginHub(entry_points_of(site))
    assert list(hub.backends) == ["fine"]
    assert len(hub.faults) == 2
    assert all("made-one 1.0" in str(fault) and "made-two 1.0" in str(fault) for fault in hub.faults)


def test_names_of_the_core_stay_the_cores(hub_of: HubOf) -> None:
    source = """
from lora_core.hookspecs import hookimpl
from lora_core.quant.policy import QuantPolicy

@hookimpl
def lora_core_register_quant_policies():
    return [QuantPolicy(name="fp32", summary="usurped"), QuantPolicy(name="mine", summary="own")]
"""
    hub = hub_of({"greedy": source})
    assert hub.policies["fp32"].summary != "usurped"
    assert hub.policies["mine"].summary == "own"
    assert ["'fp32'" in str(fault) and "made-greedy 1.0" in str(fault) for fault in hub.faults] == [True]


def test_entry_point_that_is_no_module_is_named(site: Path) -> None:
    install(site, "made-sick", {"sick": "made_sick:Thing"}, {"made_sick.py": "class Thing: pass"})
    hub = PluginHub(entry_points_of(site))
    assert "not a module with hook implementations" in str(hub.faults[0])


def test_hubs_share_nothing(hub_of: HubOf) -> None:
    assert "fine" in hub_of({"fine": good("fine")}).backends
    assert "fine" not in PluginHub([]).backends


def test_listener_that_raises_is_reported_once_and_the_others_hear_on(hub_of: HubOf) -> None:
    listener = """
from lora_core.hookspecs import hookimpl
heard = []
@hookimpl
def lora_core_on_event(event):
    heard.append(event)
    {more}
"""
    hub = hub_of({"deaf": listener.format(more="raise RuntimeError('no')"), "ear": listener.format(more="")})
    hub.tell(Warned(message="first"))
    hub.tell(Warned(message="second"))
    import made_deaf
    import made_ear

    assert len(made_deaf.heard) == 1
    assert [event.message for event in made_ear.heard if event.message in ("first", "second")] == ["first", "second"]
    assert len([fault for fault in hub.faults if "made-deaf" in str(fault)]) == 1


def test_unknown_backend_lists_the_choices_and_the_likely_one(hub_of: HubOf) -> None:
    hub = hub_of({"fine": good("fine"), "well": good("well")})
    with pytest.raises(UsageError, match=r"no backend 'wel'. Did you mean 'well'\? Choices: fine, well"):
        hub.backend("wel")


def test_without_plugins_the_remedy_is_to_install_one() -> None:
    with pytest.raises(UsageError, match="pip install"):
        PluginHub([]).backend("xnnpack")
