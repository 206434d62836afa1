"""Run the conformance kit against one backend: as a function, or as a class of tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lora_core.events import Emit, ignore
from lora_core.hub import PluginHub
from lora_core.outcome import Outcome
from lora_core.testing.catalogue import check_ids, expect_known
from lora_core.testing.check import Check
from lora_core.testing.conform_report import ConformanceReport, Result
from lora_core.testing.kit import Kit


def conform(
    backend: str,
    *,
    hub: PluginHub | None = None,
    policies: Sequence[str] | None = None,
    checks: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    known_gaps: Mapping[str, str] | None = None,
    cache: bool = False,
    emit: Emit = ignore,
) -> ConformanceReport:
    """Run every check that applies to `backend`, with a tiny random model in a temporary directory.

    `policies` (default: all that the backend declares) are what the checks go through; `checks` (default: all) the
    ids of those to run; `options` the backend's own export options by name. `known_gaps` are the ids of checks that are
    known to fail, each with the reason; one of them that passes is a failure. With `cache` exports share lowered
    templates, for backends that lower slowly; the check `reproducible` exports once more without.

    Raises `UsageError` for unknown names and `PluginError` for a backend that cannot be imported; what a check meets is
    in the report, never raised.
    Assert `report.passed`: it is true only if every check ran and held.
    """
    expect_known("check", checks or (), check_ids())
    kit = Kit(backend, hub=hub, policies=policies, options=options, known_gaps=known_gaps, cache=cache, emit=emit)
    with kit:
        return kit.report([kit.run(check) for check in kit.checks if not checks or check.id in checks])


class Conformance:
    """The kit as tests: derive from it, say `backend`, and pytest runs every check as a test of its own.

    ```python
    class TestConformance(Conformance):
        backend = "mine"
    ```

    `policies`, `options` and `known_gaps` are those of `conform`; `hub` is where the backend is found, if it is not
    installed.
    """

    backend: ClassVar[str]
    policies: ClassVar[Sequence[str] | None] = None
    options: ClassVar[Mapping[str, Any] | None] = None
    known_gaps: ClassVar[Mapping[str, str] | None] = None
    _kit: ClassVar[Kit | None] = None

    @classmethod
    def hub(cls) -> PluginHub:
        """Return the hub in which the backend is found; that of the installed plugins by default."""
        return PluginHub()

    @classmethod
    def teardown_class(cls) -> None:
        """Remove what the checks made; pytest calls it."""
        if cls._kit is not None:
            cls._kit.close()
            cls._kit = None

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make a test of every check that applies; pytest calls it."""
        if "check" in metafunc.fixturenames:
            with self._new_kit() as kit:
                metafunc.parametrize("check", kit.checks, ids=lambda check: check.id)

    def test_conforms(self, check: Check) -> None:
        """Run one check."""
        cls = type(self)
        if cls._kit is None:
            cls._kit = self._new_kit()
        judge(cls._kit.run(check))

    def _new_kit(self) -> Kit:
        cls = type(self)
        return Kit(cls.backend, hub=cls.hub(), policies=cls.policies, options=cls.options, known_gaps=cls.known_gaps)


def judge(result: Result) -> None:
    """End a test of pytest's as `result` did: a known gap is an expected failure, what cannot be checked a failure."""
    import pytest

    if result.gap:
        pytest.xfail(f"known gap: {result.gap} ({result.detail})")
    if result.outcome is not Outcome.PASSED:
        pytest.fail(f"{result.claim} {result.outcome.value}: {result.detail}", pytrace=False)
