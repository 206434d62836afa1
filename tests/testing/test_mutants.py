"""Every mutant of the example backend is caught, and by the check that claims the absence of its defect."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lora_core.hub import PluginHub
from lora_core.outcome import Outcome
from lora_core.testing.catalogue import check_ids
from lora_core.testing.kit import Kit
from lora_core.testing.materials import Materials
from tests.testing.conformance_page import PAGE, page
from tests.testing.tiny import hub_in, importable, mutants

MUTANTS = mutants()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PluginHub]:
    """The mutants, each a backend of its name."""
    with importable():
        yield hub_in(tmp_path_factory.mktemp("site") / "site")


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """The model, the adapters and the reference's answers, made once for all mutants."""
    return Materials(root=tmp_path_factory.mktemp("materials"))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught_by_the_check_that_should_catch_it(name: str, hub: PluginHub, materials: Materials) -> None:
    mutant = MUTANTS[name]
    with Kit(name, hub=hub, policies=[mutant.policy], materials=materials) as kit:
        (check,) = (check for check in kit.checks if check.id == mutant.found_by)
        result = kit.run(check)
    assert result.outcome is Outcome.FAILED, f"{mutant.defect} {result.detail}"


def test_every_check_catches_a_mutant() -> None:
    assert {mutant.found_by for mutant in MUTANTS.values()} >= {*check_ids()} - {"embedding-undeclared"}


def test_there_are_more_than_sixty_mutants() -> None:
    assert len(MUTANTS) > 60


def test_the_page_lists_checks_and_mutants_as_they_are() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tests.testing.conformance_page"
