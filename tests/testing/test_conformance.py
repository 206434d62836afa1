"""The kit passes honest backends, says what it cannot tell, and holds known gaps to their word."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from lora_core.capability import Capability
from lora_core.errors import UsageError
from lora_core.hub import PluginHub
from lora_core.outcome import Outcome
from lora_core.testing.conform_report import ConformanceReport, Result
from lora_core.testing.conformance import Conformance, conform
from lora_core.testing.kit import Kit
from tests.hub.distributions import entry_points_of, install_example
from tests.testing.tiny import hub_in, importable


@pytest.fixture(scope="module", autouse=True)
def found() -> Iterator[None]:
    """Examples can be imported, also by processes that checks start."""
    with importable():
        yield


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> PluginHub:
    """The example that runs, and its mutants."""
    return hub_in(tmp_path_factory.mktemp("tiny") / "site")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PluginHub]:
    """The example that only stores."""
    site = install_example(tmp_path_factory.mktemp("plain") / "site")
    sys.path.insert(0, str(site))
    yield PluginHub(entry_points_of(site))
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.startswith("lora_core_plain")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def report(hub: PluginHub) -> ConformanceReport:
    """What the kit finds about the example that runs."""
    return conform("tiny", hub=hub)


def test_the_example_that_runs_conforms(report: ConformanceReport) -> None:
    assert report.passed, report
    assert {result.outcome for result in report.results} == {Outcome.PASSED}


def test_it_is_checked_for_everything_it_declares(report: ConformanceReport) -> None:
    ran = {result.id for result in report.results}
    assert {"base-numbers", "adapter-numbers", "kv-cache", "add-is-export", "link-light", "bytes-accounted"} <= ran
    assert report.policies == ("fp32", "8da8w")


def test_the_example_that_only_stores_conforms(plain: PluginHub) -> None:
    report = conform("plain", hub=plain)
    assert report.passed, report
    ran = {result.id for result in report.results}
    assert "run-undeclared" in ran
    assert "base-numbers" not in ran


def test_a_backend_with_slot_plans_conforms(hub: PluginHub) -> None:
    report = conform("padded", hub=hub)
    assert report.passed, report


def test_a_backend_that_never_runs_does_not_pass(hub: PluginHub) -> None:
    report = conform("never_opens", hub=hub, policies=["fp32"])
    assert not report.passed
    assert {result.id for result in report.failures} >= {"base-numbers", "kv-cache", "facts", "bundle-whole"}


def test_what_this_machine_cannot_show_is_no_pass() -> None:
    result = Result(id="facts", claim="", outcome=Outcome.UNCHECKED, detail="no runtime here")
    report = ConformanceReport(backend="far", distribution="far 1", policies=(), results=(result,))
    assert not report.passed
    assert report.failures == ()
    assert report.unchecked == (result,)


def test_a_sick_machine_leaves_checks_open(hub: PluginHub) -> None:
    # `diagnose` says that nothing works, so that `open` may refuse.
    with Kit("sick_and_closed", hub=hub, policies=["fp32"]) as kit:
        outcomes = {check.id: kit.run(check).outcome for check in kit.checks if check.id in ("facts", "works-here")}
    assert outcomes == {"facts": Outcome.UNCHECKED, "works-here": Outcome.FAILED}


def test_a_known_gap_does_not_fail(hub: PluginHub) -> None:
    report = conform("logs_to_stderr", hub=hub, checks=["stderr-silent"], known_gaps={"stderr-silent": "a native log"})
    assert report.passed
    assert [(each.outcome, each.gap) for each in report.results] == [(Outcome.FAILED, "a native log")]


def test_a_known_gap_that_passes_fails(hub: PluginHub) -> None:
    report = conform("tiny", hub=hub, checks=["facts"], policies=["fp32"], known_gaps={"facts": "long ago"})
    assert not report.passed
    assert "take it off" in report.failures[0].detail


def test_known_gaps_are_exact_ids_with_a_reason(hub: PluginHub) -> None:
    with pytest.raises(UsageError, match="Did you mean 'facts'"):
        conform("tiny", hub=hub, known_gaps={"fact": "?"})
    with pytest.raises(UsageError, match="no check of tiny 'link-undeclared'"):
        conform("tiny", hub=hub, known_gaps={"link-undeclared": "it links"})
    with pytest.raises(UsageError, match="needs a reason"):
        conform("tiny", hub=hub, known_gaps={"facts": " "})


def test_who_listens_to_progress_may_print(hub: PluginHub, capsys: pytest.CaptureFixture[str]) -> None:
    report = conform("tiny", hub=hub, checks=["stdout-silent"], policies=["fp32"], emit=lambda event: print(event))
    assert report.passed, report
    assert "Store the base" in capsys.readouterr().out


def test_checks_that_do_not_apply_do_not_run(hub: PluginHub) -> None:
    assert conform("tiny", hub=hub, checks=["link-undeclared", "run-undeclared"]).results == ()


def test_unknown_names_are_refused(hub: PluginHub) -> None:
    with pytest.raises(UsageError, match="Did you mean 'tiny'"):
        conform("tinyy", hub=hub)
    with pytest.raises(UsageError, match="no policy '8da4w'"):
        conform("tiny", hub=hub, policies=["8da4w"])
    with pytest.raises(UsageError, match="Did you mean 'blobs-true'"):
        conform("tiny", hub=hub, checks=["blob-true"])


def test_a_report_is_plain_data(report: ConformanceReport) -> None:
    document = report.to_json()
    assert document["passed"] is True
    assert {"id", "claim", "outcome", "detail", "gap", "seconds"} == set(document["results"][0])


def test_capabilities_choose_the_checks(hub: PluginHub) -> None:
    assert Capability.LINK not in hub.backends["links_undeclared"].capabilities
    with Kit("links_undeclared", hub=hub) as kit:
        ids = {check.id for check in kit.checks}
    assert "link-undeclared" in ids
    assert "add-is-export" not in ids


class TestTheClass(Conformance):
    """Three lines are a suite: each check is a test."""

    backend = "tiny"
    policies = ("fp32",)

    @classmethod
    def hub(cls) -> PluginHub:
        """The example is not installed."""
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as site, importable():
            hub = hub_in(Path(site) / "site")
            hub.backend("tiny")
            hub.backend_options("tiny")
        return hub
