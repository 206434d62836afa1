"""Where chat templates run: jinja's immutable sandbox, with an end to how much one may do.

A template is a stranger's code. What it does is counted: each turn of a loop and each call of a macro is a step, and so
is what it costs to make a text. A loop that writes nothing is stopped as one that writes too much is, at the same
place on every machine; a clock stops what takes long in a few steps.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

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

    def text(self, length: int) -> None:
        """Count a text or list of `length` that is put together."""
        if length > LONGEST:
            raise TooMuchError(f"it puts more than {LONGEST:,} characters together")
        self.steps(length // _CHARACTERS)


def _environment(effort: Effort) -> jinja2.Environment:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

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
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    made: jinja2.Environment = environment
    return made


def _counting() -> Callable[..., Any]:
    """Return the environment class: the sandbox, counting what templates do."""
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
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

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return call("together", node.nodes, node.lineno)

    class CountingEnvironment(ImmutableSandboxedEnvironment):
        # What is intercepted is not computed while the template is compiled either.
        intercepted_binops = frozenset(("+", "*", "**", "%"))
        effort: Effort

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree: nodes.Template = Counting().visit(super()._parse(source, name, filename))
            tree.set_environment(self)
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            self.effort.text(_size(operator, left, right))
            return super().call_binop(context, operator, left, right)

        def called(self) -> None:
            self.effort.steps(_CALL)

        def counted(self, entries: Any) -> Iterator[Any]:
            for entry in entries:
                self.effort.steps(1)
                yield entry

        def together(self, *parts: Any) -> str:
            texts = [str(part) for part in parts]
            self.effort.text(sum(map(len, texts)))
            return "".join(texts)

    return CountingEnvironment


def _size(operator: str, left: Any, right: Any) -> int:
    """Return about how long what `operator` makes will be: characters, entries of a list, bits of a number."""
    if operator == "%":
        if not isinstance(left, str):
            return 0
        widths = [int(number) for number in re.findall(r"\d+", left)]
        if "*" in left:  # the width is among what is given
            widths += [abs(each) for each in (right if isinstance(right, tuple) else (right,)) if isinstance(each, int)]
        return sum(widths)
    sizes = [len(each) if isinstance(each, str | list | tuple) else 0 for each in (left, right)]
    if operator == "+":
        return sum(sizes)
    numbers = [abs(each) if isinstance(each, int) else 0 for each in (left, right)]
    if operator == "*":
        return max(sizes[0] * numbers[1], sizes[1] * numbers[0], numbers[0].bit_length() + numbers[1].bit_length())
    return numbers[0].bit_length() * numbers[1]


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
