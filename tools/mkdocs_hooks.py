"""What the site has beyond the pages: the API of every public module, and links that lead out of `docs/` as names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[1]
API = "reference/api"
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Put a page for every public module into the navigation."""
    pages = [{name: f"{API}/{name}.md"} for name, _ in public_modules()]
    for section in config.nav:
        for entry in section.get("Reference", []) if isinstance(section, dict) else []:
            if isinstance(entry, dict) and "API by module" in entry:
                entry["API by module"] = pages
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add those pages; mkdocstrings fills them."""
    from mkdocs.structure.files import File

    for name, purpose in public_modules():
        text = f"# `{name}`\n\n{purpose[:1].upper()}{purpose[1:]}.\n\n::: {name}\n"
        files.append(File.generated(config, f"{API}/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001 - mkdocs's signature
    """Leave of a link to a file outside of `docs/` its text: the site has no such file."""
    folder = PurePosixPath(page.file.src_uri).parent

    def plain(match: re.Match[str]) -> str:
        target = match["target"]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        return match["text"] if _leaves(folder, target) else match[0]

    return LINK.sub(plain, markdown)


def public_modules() -> Iterator[tuple[str, str]]:
    """Yield the public modules and what they are for, read from the source as everything here is."""
    tree = ast.parse((ROOT / "lora_core/plugin/public.py").read_text("utf-8"))
    values = [node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.value is not None]
    yield from ast.literal_eval(values[0]).items()


def _leaves(folder: PurePosixPath, target: str) -> bool:
    depth = len(folder.parts)
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False
