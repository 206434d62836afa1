"""Every relative link in README, CONTRIBUTING and `docs/` leads somewhere, its anchor too."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path, PurePosixPath

import pytest
from docsite.navigation import NAVIGATION
from docsite.staging import within

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("plugins/*/*.md"), *ROOT.glob("changes/*.md")]
)
_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return _CODE.sub("`", _FENCE.sub("", text))


def links(page: Path) -> list[str]:
    found = _LINK.findall(without_code(page.read_text("utf-8")))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", _FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return frozenset(found)


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: str) -> None:
    source = ROOT / page
    broken = []
    for target in links(source):
        path, _, anchor = target.partition("#")
        file = (source.parent / path).resolve() if path else source
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == [], f"{page} has links that lead nowhere"


def test_links_are_found() -> None:
    assert len([link for page in PAGES for link in links(page)]) > 50


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs/index.md"
    reached = {(index.parent / target.partition("#")[0]).resolve() for target in links(index)}
    missing = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")} - {
        str(path.relative_to(ROOT)) for path in reached if path.is_relative_to(ROOT)
    }
    assert missing == {"docs/index.md"}


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 75


def test_the_site_shows_every_page() -> None:
    shown = [page for pages in NAVIGATION.values() for page in pages if page != "reference/api/index"]
    there = [str(page.relative_to(ROOT / "docs").with_suffix("")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(shown) == sorted(page for page in there if page != "index")


def test_the_site_keeps_of_links_out_of_docs_their_text_alone() -> None:
    page = "[a](../../examples/plugin) [b](../cli.md#export) [c](other.md) [d](https://example.org)"
    kept = "a [b](../cli.md#export) [c](other.md) [d](https://example.org)"
    assert within(page, PurePosixPath("how-to")) == kept
