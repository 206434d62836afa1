"""Where chat templates run: jinja's immutable sandbox, with an end to how much one may do.

A template is a stranger's code. What it does is counted: each turn of a loop and each call of a macro is a step, and so
is what it costs to make a text or a list, which is told before it is made (`template_sizes.py`). A loop that writes
nothing is stopped as one that writes too much is, at the same place on every machine; a clock stops what takes long in
a few steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

from lora_core.runtime import template_sizes as sizes

if TYPE_CHECKING:
    import jinja2

LONGEST = 10_000_000
"""Characters of a prompt, and of any text on the way to it; a template that writes more is stopped."""
MOST_STEPS = 200_000
"""Turns of loops, each a step, and what else is counted; real templates take some for each message."""
_CALL = 10
"""Steps that a call of a macro counts as."""
_CHARACTERS = 1_000
"""Of a text that is put together, as long as a step takes."""
_SECONDS = 20.0
_LOOK = 256
"""Steps between two looks at the clock."""
_STRFTIME = 256
"""Python gives up on a date that is longer than its pattern by this factor (`timemodule.c`)."""


class TooMuchError(Exception):
    """A template does more than a prompt needs."""


def render(source: str, values: Mapping[str, Any]) -> str:
    """Return what the template `source` writes for `values`; raises whatever goes wrong in it, or `TooMuchError`."""
    template = _environment(Effort()).from_string(source)
    pieces: list[str] = []
    length = 0
    for piece in template.generate(**values):
        pieces.append(piece)
        length += len(piece)
        if length > LONGEST:
            raise TooMuchError(f"it writes more than {LONGEST:,} characters")
    return "".join(pieces)


class Effort:
    """Counts what a template does."""

    def __init__(self) -> None:
        self._steps = 0
        self._end = time.monotonic() + _SECONDS

    def steps(self, count: int) -> None:
        """Count some steps; raises `TooMuchError`."""
        self._steps += count
        if self._steps > MOST_STEPS:
            raise TooMuchError(f"it takes more than {MOST_STEPS:,} steps of loops and macros")
        if self._steps % _LOOK < count and time.monotonic() > self._end:
            raise TooMuchError(f"it runs for more than {_SECONDS:g} seconds")

    def text(self, length: int, *, before: int = 0) -> None:
        """Count `length` of a text or list that is put together, behind what was counted `before`."""
        if before + length > LONGEST:
            raise TooMuchError(f"it puts more than {LONGEST:,} characters together")
        self.steps(length // _CHARACTERS)


def _environment(effort: Effort) -> jinja2.Environment:
    from jinja2 import TemplateError, pass_context
    from jinja2.ext import loopcontrols

    def finalize(_: Any, written: Any) -> Any:  # of a context, so that nothing is written while it is compiled
        effort.text(sizes.extent(written).characters)
        return written

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(pattern: str) -> str:
        effort.text(len(pattern) * _STRFTIME)
        return datetime.now().strftime(pattern)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment: Any = _counting()(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_blocks(), loopcontrols]
    )
    environment.effort = effort
    environment.finalize = pass_context(finalize)
    environment.filters["tojson"] = tojson
    environment.filters |= {name: _counted(name, made, effort) for name, made in environment.filters.items()}
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    del environment.globals["lipsum"]  # as many words as it is asked for, and others each time
    made: jinja2.Environment = environment
    return made


def _counted(name: str, made: Callable[..., Any], effort: Effort) -> Callable[..., Any]:
    """Return the filter `made`, counting what it makes."""
    before = 1 if hasattr(made, "jinja_pass_arg") else 0

    @wraps(made)
    def counted(*arguments: Any, **named: Any) -> Any:
        passed, (value, *given) = arguments[:before], arguments[before:]
        value = _held(value) if name in sizes.HELD else value
        effort.text(sizes.of_filter(name, value, given, named))
        return made(*passed, value, *given, **named)

    return counted


def _held(value: Any) -> Any:
    """Return what is in `value` as a list, if it could be looked at only once."""
    return list(value) if isinstance(value, Iterator) else value


def _counting() -> Callable[..., Any]:
    """Return the environment class: the sandbox, counting what templates do."""
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
    from jinja2.visitor import NodeTransformer

    def call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None, lineno=line)

    class Counting(NodeTransformer):
        def visit_Macro(self, node: Any) -> Any:
            self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(call("called", [], node.lineno), lineno=node.lineno))
            return node

        visit_CallBlock = visit_Macro

        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.iter = call("counted", [node.iter], node.lineno)
            return node

        def visit_Output(self, node: Any) -> Any:
            self.generic_visit(node)
            written = sum(len(each.data) for each in node.nodes if isinstance(each, nodes.TemplateData))
            count = call("wrote", [nodes.Const(written)], node.lineno)
            return [nodes.ExprStmt(count, lineno=node.lineno), node] if written >= _CHARACTERS else node

        def visit_Getitem(self, node: Any) -> Any:
            self.generic_visit(node)
            return call("cut", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return call("together", node.nodes, node.lineno)

    class CountingFormatter(SandboxedFormatter):
        """Counts each field before it is written, and all of them together."""

        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            self._effort: Effort = environment.effort
            self._length = 0

        def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
            found = super().get_field(field_name, args, kwargs)
            self._count(sizes.extent(found[0]).characters)
            return found

        def format_field(self, value: Any, format_spec: str) -> str:
            self._count(sizes.of_specification(format_spec))
            return str(super().format_field(value, format_spec))

        def _count(self, length: int) -> None:
            self._effort.text(length, before=self._length)
            self._length += length

    class CountingEnvironment(ImmutableSandboxedEnvironment):
        # What is intercepted is not computed while the template is compiled either.
        intercepted_binops = frozenset(("+", "*", "**", "%"))
        effort: Effort

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree: nodes.Template = Counting().visit(super()._parse(source, name, filename))
            tree.set_environment(self)
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            self.effort.text(sizes.of_operator(operator, left, right))
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __called: Any, *arguments: Any, **named: Any) -> Any:
            # Named as in jinja, so that no argument of a call in a template is called the same.
            owner = getattr(__called, "__self__", None)
            if isinstance(owner, str | bytes | int):
                arguments = tuple(map(_held, arguments))
                __self.effort.text(sizes.of_method(__called.__name__, owner, arguments, named))
            elif isinstance(owner, type):  # `Markup.escape` makes a text of anything
                __self.effort.text(sum(sizes.extent(each).characters for each in arguments))
            return super().call(__context, __called, *arguments, **named)

        def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
            made: Callable[..., str] | None = super().wrap_str_format(value)
            if made is None:
                return None

            @wraps(made)
            def formatted(*arguments: Any, **named: Any) -> str:
                given = ((), *arguments) if value.__name__ == "format_map" else (arguments, named)
                CountingFormatter(self).vformat(value.__self__, *given)
                return made(*arguments, **named)

            return formatted

        def called(self) -> None:
            self.effort.steps(_CALL)

        def wrote(self, length: int) -> None:
            self.effort.text(length)

        def cut(self, piece: Any) -> Any:
            self.effort.text(len(piece) if isinstance(piece, Sized) else 0)
            return piece

        def counted(self, entries: Any) -> Iterator[Any]:
            for entry in entries:
                self.effort.steps(1)
                yield entry

        def together(self, *parts: Any) -> str:
            self.effort.text(sum(sizes.extent(part).characters for part in parts))
            return "".join(map(str, parts))

    return CountingEnvironment


def _generation_blocks() -> type[jinja2.ext.Extension]:
    """Return the extension for `{% generation %}` blocks, which mark the assistant's text for training: shown as is."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationBlocks(Extension):
        tags = {"generation"}  # noqa: RUF012  the base class declares it so

        def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationBlocks
