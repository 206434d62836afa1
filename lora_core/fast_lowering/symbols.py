"""Remember arithmetic on symbolic sizes instead of doing it again for every tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_core.fast_lowering.patching import Patches

_METHODS = ("add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge", "mod", "floordiv", "int_floordiv")


def remember_arithmetic(patches: Patches) -> None:
    """Answer the same operation on the same symbolic numbers with the same result.

    torch 2.13.0 (`fx/experimental/sym_node.py`) computes strides, element counts and comparisons of every fake tensor
    with sympy, and a decoder has thousands of tensors of a handful of shapes. A result depends on the two expressions,
    their types and what is known of the symbols (`_replacements_version_counter`). While operations are recorded in a
    graph, nothing is remembered. Drop when torch does.
    """
    from torch.fx.experimental.proxy_tensor import get_proxy_mode
    from torch.fx.experimental.sym_node import SymNode

    memory: dict[Any, Any] = {}
    patches.undo(memory.clear)
    _remember_numbers(patches)

    def remembering(method: str, compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def remembered(self: Any, other: Any) -> Any:
            environment = self.shape_env
            if environment is None or self.fx_node or not isinstance(other, SymNode) or get_proxy_mode() is not None:
                return compute(self, other)
            version = environment._replacements_version_counter
            key = (method, environment, version, self._expr, self.pytype, other._expr, other.pytype)
            found = memory.get(key)
            if found is None:
                memory[key] = found = compute(self, other)
            own = SymNode.__new__(SymNode)  # graphs tell results apart by their identity
            vars(own).update(vars(found))
            return own

        return remembered

    for method in _METHODS:
        name = f"_{method}"
        if name in vars(SymNode):
            patches.replace(SymNode, name, remembering(method, vars(SymNode)[name]))


def _remember_numbers(patches: Patches) -> None:
    """Ask an expression once whether it is a number: sympy looks through all of it each time."""
    from torch.fx.experimental.sym_node import SymNode

    known: dict[int, tuple[Any, bool]] = {}  # by identity, which the expression that is kept beside keeps
    patches.undo(known.clear)
    replaced = vars(SymNode)["expr"].fget

    def is_number(expression: Any) -> bool:
        found = known.get(id(expression))
        if found is None:
            known[id(expression)] = found = (expression, isinstance(expression, int) or bool(expression.is_number))
        return found[1]

    def expr(self: Any) -> Any:
        own = self._expr
        environment = self.shape_env
        if is_number(own) or (environment is not None and not environment._replacements_version_counter):
            return own
        return replaced(self)

    def maybe_as_int(self: Any) -> int | None:
        expression = expr(self)
        return int(expression) if is_number(expression) else None

    patches.replace(SymNode, "expr", property(expr))
    patches.replace(SymNode, "maybe_as_int", maybe_as_int)
