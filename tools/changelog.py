"""`make changelog`: move the fragments of `changes/` under the first heading of `CHANGELOG.md`."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = ("interface", "added", "changed", "fixed", "removed")
_NAME = re.compile(rf"[a-z0-9]+(-[a-z0-9]+)*\.({'|'.join(KINDS)})\.md")
_WIDTH = 120


def fragments() -> list[Path]:
    """Return the fragments in the order in which they are told: by kind, then by name."""
    found = [path for path in (ROOT / "changes").iterdir() if path.name != "README.md"]
    return sorted(found, key=lambda path: (KINDS.index(kind) if (kind := _kind(path)) in KINDS else -1, path.name))


def problem(name: str, text: str) -> str | None:
    """Return what is wrong with a fragment, None if nothing is."""
    if not _NAME.fullmatch(name):
        return f"{name} is not called NAME.KIND.md with KIND one of {', '.join(KINDS)}"
    if not text.strip() or not text.rstrip().endswith((".", "`")):
        return f"{name} does not end in a sentence"
    if re.search(r"^(#|-|\*) ", text, re.MULTILINE):
        return f"{name} has a heading or bullets"
    return None


def joined(changelog: str, texts: list[str]) -> str:
    """Return `changelog` with `texts` as the last entries under its first heading."""
    entries = [
        textwrap.fill(
            " ".join(text.split()), _WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
        for text in texts
    ]
    head, first, rest = re.split(r"^(?=## )", changelog, maxsplit=2, flags=re.MULTILINE)
    return f"{head}{first.rstrip()}\n{chr(10).join(entries)}\n\n{rest}"


def main() -> None:
    """Move the fragments."""
    found = fragments()
    wrong = [text for path in found if (text := problem(path.name, path.read_text("utf-8"))) is not None]
    if wrong:
        raise SystemExit("\n".join(wrong))
    path = ROOT / "CHANGELOG.md"
    path.write_text(joined(path.read_text("utf-8"), [each.read_text("utf-8") for each in found]), "utf-8")
    for each in found:
        each.unlink()


def _kind(path: Path) -> str:
    return path.name.removesuffix(".md").rpartition(".")[2]


if __name__ == "__main__":
    main()
