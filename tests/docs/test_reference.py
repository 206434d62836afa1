"""The reference in `docs/` says what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from refdocs import listings
from refdocs.made import PAGES
from refdocs.modules import public_names

from lora_core.plugin.public import PUBLIC

ROOT = Path(__file__).parents[2]
REMEDY = "run `make reference` and commit what it writes"


@pytest.mark.parametrize("page", PAGES)
def test_a_made_page_is_as_the_code_makes_it(page: str) -> None:
    path = ROOT / page
    assert path.exists(), f"{page} is missing: {REMEDY}"
    assert path.read_text("utf-8") == PAGES[page](), f"{page} is out of date: {REMEDY}"


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in listings.pages()])
def test_a_page_shows_the_files_as_they_are(page: str) -> None:
    assert (ROOT / page).read_text("utf-8") == listings.filled(ROOT / page), f"{page} is out of date: {REMEDY}"


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_module_has_names_to_import(module: str) -> None:
    assert list(public_names(module))
