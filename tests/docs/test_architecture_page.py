"""`docs/architecture.md` shows the tree and the floors as they are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
TREES = re.findall(r"^<!-- tree: (\S+) -->\n```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_core_and_every_plugin_have_a_tree() -> None:
    packages = [str(path.parent.relative_to(ROOT)) for path in (ROOT / "plugins").glob("*/lora_core_*/__init__.py")]
    assert sorted(folder for folder, _ in TREES) == sorted(["lora_core", *packages])


@pytest.mark.parametrize(("folder", "tree"), TREES, ids=[folder for folder, _ in TREES])
def test_a_tree_names_every_folder_and_module_and_says_what_it_is(folder: str, tree: str) -> None:
    shown = {}
    for line in tree.splitlines()[1:]:
        name, _, text = line.strip().partition(" ")
        shown[name] = text.strip()
    there = {f"{path.name}/" for path in (ROOT / folder).iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"}
    assert set(shown) == there
    assert all(shown.values())


def test_the_floors_are_those_of_the_import_test() -> None:
    tree = ast.parse((ROOT / "tests/test_architecture.py").read_text("utf-8"))
    (floors,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS"
    )
    shown = re.search(r"^<!-- floors -->\n```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert shown[1].splitlines() == [", ".join(floor) for floor in floors]
