"""A distribution declares what its package imports: all of it, and nothing else."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.packaging.distributions import ALL, Distribution, metadata, names, requirements

# Of our own packages, which another distribution than the one under test brings.
OURS = {each.stem: each.name for each in ALL}


BY_NAME = {"onnxruntime-qnn"}
"""Declared as extras, and loaded by name where users installed them."""


@pytest.fixture(scope="module")
def providers() -> Mapping[str, Sequence[str]]:
    """The installed distributions that bring a module, by its top-level name."""
    return packages_distributions()


@pytest.mark.parametrize("distribution", ALL, ids=lambda distribution: distribution.name)
def test_declared_is_what_is_imported(distribution: Distribution, providers: Mapping[str, Sequence[str]]) -> None:
    declared = names(requirements(metadata(distribution))) - {distribution.name}
    undeclared, used = [], set()
    for module, places in imported(distribution.package).items():
        if module in sys.stdlib_module_names or module == distribution.stem:
            continue
        by = {OURS[module]} if module in OURS else {canonicalize_name(name) for name in providers.get(module, ())}
        used |= by
        if not by & declared:
            undeclared.append(f"{places[0]} imports {module} (of {', '.join(sorted(by)) or 'nothing installed'})")
    assert undeclared == []
    assert declared - used - BY_NAME == set(), "declared, but never imported"


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    source = "import a.b, c\nfrom d.e import f\nfrom . import g\nfrom .h import i\n"
    (tmp_path / "sub/module.py").write_text(f"{source}def late():\n    if c:\n        import j as k\n", "utf-8")
    assert set(imported(tmp_path)) == {"a", "c", "d", "j"}
    assert imported(tmp_path)["j"] == ["sub/module.py:7"]


def imported(package: Path) -> dict[str, list[str]]:
    """Return the top-level modules that files below `package` import, each with the places of it."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        for line, module in _imports(ast.parse(path.read_text("utf-8"))):
            found.setdefault(module.partition(".")[0], []).append(f"{path.relative_to(package)}:{line}")
    return found


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node.lineno, node.module
