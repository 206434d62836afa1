"""The API of the public modules as pages, read from their sources and never imported.

Docstrings are Markdown, so a page is their text under headings with signatures.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def public_modules() -> Mapping[str, str]:
    """Return the public modules and what each is for."""
    tree = ast.parse((ROOT / "lora_core/plugin/public.py").read_text("utf-8"))
    (value,) = (node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.value is not None)
    found: dict[str, str] = ast.literal_eval(value)
    return found


def module_page(name: str) -> str:
    """Return the page of one module: its docstring, classes and functions."""
    path = ROOT / f"{name.replace('.', '/')}.py"
    tree = ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text("utf-8"))
    parts = [f"# `{name}`", ast.get_docstring(tree) or ""]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            parts += _class(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            parts += _function(node, 2)
    return "\n\n".join(part for part in parts if part) + "\n"


def _class(node: ast.ClassDef) -> Iterator[str]:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    members = [each for each in node.body if isinstance(each, ast.AnnAssign) and not _private(each.target)]
    lines = [f"class {node.name}({bases}):" if bases else f"class {node.name}:"]
    lines += [f"    {ast.unparse(each)}" for each in members]
    yield f"## `{node.name}`"
    yield "```python\n" + "\n".join(lines if members else [lines[0].rstrip(":")]) + "\n```"
    yield ast.get_docstring(node) or ""
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
            yield from _function(each, 3)


def _function(node: ast.FunctionDef, level: int) -> Iterator[str]:
    decorators = [text for each in node.decorator_list if (text := ast.unparse(each)) in _SHOWN]
    head = f"def {node.name}({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    yield f"{'#' * level} `{node.name}`"
    yield "```python\n" + "\n".join([*(f"@{each}" for each in decorators), head]) + "\n```"
    yield ast.get_docstring(node) or ""


def _private(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id.startswith("_")


_SHOWN = ("property", "abstractmethod", "classmethod", "staticmethod", "contextmanager", "hookspec")
