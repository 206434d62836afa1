"""Pages as Sphinx takes them: those of `docs/`, with a navigation, and the API of the public modules.

The pages in `docs/` are plain Markdown, which reads as well on a code host; all that only the site needs is added here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from docsite.api import ROOT, module_page, public_modules
from docsite.navigation import NAVIGATION

_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(#[^)\s]*)?\)")


def stage(target: Path) -> None:
    """Write all that Sphinx builds into `target`, which is made anew."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target)
    for page in target.rglob("*.md"):
        folder = PurePosixPath(page.relative_to(target).parent.as_posix())
        page.write_text(within(page.read_text("utf-8"), folder), "utf-8")
    modules = public_modules()
    (target / "reference/api").mkdir()
    for name in modules:
        (target / f"reference/api/{name}.md").write_text(module_page(name), "utf-8")
    purposes = "\n".join(f"- [`{name}`]({name}.md): {purpose}" for name, purpose in modules.items())
    text = f"# API by module\n\n{purposes}\n\n{toctree('', tuple(modules))}"
    (target / "reference/api/index.md").write_text(text, "utf-8")
    with (target / "index.md").open("a", encoding="utf-8") as index:
        index.writelines(f"\n{toctree(caption, pages)}" for caption, pages in NAVIGATION.items())


def toctree(caption: str, pages: Sequence[str]) -> str:
    """Return a part of the navigation that does not show in the page itself."""
    head = f":caption: {caption}\n" if caption else ""
    return "```{toctree}\n:hidden:\n" + head + "\n" + "\n".join(pages) + "\n```\n"


def within(markdown: str, folder: PurePosixPath) -> str:
    """Return `markdown` of a page in `folder`, of links that lead out of `docs/` their text alone."""

    def plain(match: re.Match[str]) -> str:
        outside = "://" not in match["target"] and _leaves(folder, match["target"])
        return match["text"] if outside else match[0]

    return _LINK.sub(plain, markdown)


def _leaves(folder: PurePosixPath, target: str) -> bool:
    depth = len(folder.parts)
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False
