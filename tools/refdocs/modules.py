"""The modules that plugins may import, with the names in each."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from lora_core.plugin.public import PUBLIC
from refdocs.markdown import first_line, page, table
from refdocs.projects import ROOT


def modules_page() -> str:
    """Return the page of the public modules."""
    parts = []
    for module, purpose in PUBLIC.items():
        rows = [[f"`{name}`", text] for name, text in public_names(module)]
        parts.append(f"## `{module}`\n\n{purpose[:1].upper()}{purpose[1:]}.\n\n{table(['name', ''], rows)}")
    return page(
        "Public modules",
        "What a plugin may import of lora-core: `lora_core.plugin.public.PUBLIC`. Everything else may change without "
        "notice. Names that begin with an underscore are private here too.",
        *parts,
    )


def public_names(module: str) -> Iterator[tuple[str, str]]:
    """Yield the public names that `module` defines, in their order, each with the first line of what it says."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not path.exists():
        path = ROOT / module.replace(".", "/") / "__init__.py"
    body = ast.parse(path.read_text("utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        for name in _names(node):
            if not name.startswith("_"):
                yield name, _text(node, after)


def _names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (name.id for name in names if isinstance(name, ast.Name))


def _text(node: ast.stmt, after: ast.stmt | None) -> str:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return first_line(ast.get_docstring(node) or "")
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return first_line(after.value.value)
    return ""
