"""The kit passes honest backends and finds each defect by the check that claims its absence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_core.errors import UsageError
from lora_core.hub import PluginHub
from lora_core.testing.conform_report import Outcome
from lora_core.testing.conformance import conform
from tests.hub.distributions import entry_points_of, install, install_example

VARIANTS = (Path(__file__).parent / "variants.py").read_text("utf-8")

FOUND_BY = {
    ("sick", "works"): "The library is missing",
    ("foundation_with_adapters", "foundation"): "is another than without",
    ("restless", "deterministic"): "alice.safetensors differs",
    ("restless", "order"): "alice.safetensors differs",
    ("otherwise_linked", "add"): "bob.safetensors differs",
    ("foreign", "add"): "KeyError: 'lost'",
    ("forgetful", "tensors"): "v_proj.lora_B.weight",
    ("lying", "sharing"): "do not have the hash",
    ("doubling", "sharing"): "stored more than once: 'copy' in foundation.safetensors and 'tok_embeddings.weight'",
    ("any_fingerprint", "foreign"): "`fingerprint` accepts",
    ("undeclared", "no link"): "does not raise UnsupportedError",
    ("undeclared", "no run"): "does not raise UnsupportedError",
    ("remembering", "answers"): "the KV cache survived",
    ("deaf", "answers"): "an adapter has no effect",
    ("overflowing", "answers"): "not all finite",
    ("welcoming", "unknown"): "does not raise UsageError",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PluginHub]:
    """The example plugin and its variants, installed on the import path."""
    site = install_example(tmp_path_factory.mktemp("variants") / "site")
    install(site, "lora-core-variants", {"variants": "plain_variants"}, {"plain_variants.py": VARIANTS})
    sys.path.insert(0, str(site))
    yield PluginHub(entry_points_of(site))
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.startswith(("lora_core_plain", "plain_variants"))]:
        del sys.modules[name]


def test_the_example_plugin_conforms(hub: PluginHub) -> None:
    report = conform("plain", hub=hub)
    assert report.failures == ()
    assert {result.outcome for result in report.results} == {Outcome.PASSED}
    assert {"foundation", "add", "tensors", "foreign", "no run"} <= {result.name for result in report.results}


def test_a_backend_that_runs_conforms(hub: PluginHub) -> None:
    report = conform("running", hub=hub, checks=["answers", "added answers", "unknown", "foreign"])
    assert [(result.name, result.outcome) for result in report.results if result.detail] == []
    assert len(report.results) == 4


@pytest.mark.parametrize(("variant", "check"), FOUND_BY)
def test_a_defect_is_found(variant: str, check: str, hub: PluginHub) -> None:
    report = conform(variant, hub=hub, checks=[check])
    [result] = report.results
    assert result.outcome is Outcome.FAILED
    assert FOUND_BY[variant, check] in result.detail
    assert not report.passed


def test_checks_that_do_not_apply_do_not_run(hub: PluginHub) -> None:
    assert conform("plain", hub=hub, checks=["answers", "no link"]).results == ()


def test_unknown_names_are_refused(hub: PluginHub) -> None:
    with pytest.raises(UsageError, match="Did you mean 'plain'"):
        conform("plian", hub=hub)
    with pytest.raises(UsageError, match="no policy '8da4w'"):
        conform("plain", hub=hub, policies=["8da4w"])
    with pytest.raises(UsageError, match="Did you mean 'sharing'"):
        conform("plain", hub=hub, checks=["sharin"])
