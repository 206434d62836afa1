"""The conformance kit as a pytest plugin, loaded only when it is asked for.

`pytest -p lora_core.testing.pytest_plugin --conform NAME`

Each check is a test item, `conform::NAME::ID`, that `-k` selects. Without paths on the command line nothing else is
collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_core.errors import LoraCoreError
from lora_core.testing.check import Check
from lora_core.testing.conformance import judge
from lora_core.testing.kit import Kit


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("lora-core")
    group.addoption("--conform", action="append", default=[], metavar="NAME", help="Check this backend. Repeatable.")
    group.addoption(
        "--conform-policy", action="append", default=[], metavar="NAME", help="Check with this policy only. Repeatable."
    )
    group.addoption(
        "--conform-gap",
        action="append",
        default=[],
        metavar="ID=REASON",
        help="This check is known to fail. Repeatable.",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:  # noqa: ARG001 - pytest's
    """Collect no files where only backends were named."""
    alone = config.getoption("--conform") and config.args_source is not pytest.Config.ArgsSource.ARGS
    return True if alone else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add an item for each check of each backend."""
    for name in config.getoption("--conform"):
        items += BackendChecks.from_parent(session, name=f"conform::{name}", backend=name).collect()


class BackendChecks(pytest.Collector):
    """The checks of one backend; they share what they make until the last of them ended."""

    def __init__(self, *, backend: str, **rest: Any) -> None:
        super().__init__(**rest)
        policies = self.config.getoption("--conform-policy") or None
        gaps = dict(gap.partition("=")[::2] for gap in self.config.getoption("--conform-gap"))
        try:
            self.kit = Kit(backend, policies=policies, known_gaps=gaps)
        except LoraCoreError as error:
            raise pytest.UsageError(str(error)) from error

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item for each check."""
        return (CheckItem.from_parent(self, name=check.id, check=check) for check in self.kit.checks)

    def teardown(self) -> None:
        """Remove what the checks made."""
        self.kit.close()


class CheckItem(pytest.Item):
    """One check."""

    def __init__(self, *, check: Check, **rest: Any) -> None:
        super().__init__(**rest)
        self.check = check

    def runtest(self) -> None:
        """Run it."""
        assert isinstance(self.parent, BackendChecks), "checks are made by their backend's collector"
        judge(self.parent.kit.run(self.check))

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Say what it is called."""
        return Path(__file__), None, self.nodeid
