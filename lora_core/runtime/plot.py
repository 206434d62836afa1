"""A picture of a benchmark as SVG: speed of every method and memory after each load.

Written by hand: bars need no plotting library, and the picture has to go into a page that loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import attrs

from lora_core.runtime.bench import BenchReport
from lora_core.runtime.session import Loaded

_WIDTH, _LABEL, _BAR, _ROW, _TITLE = 760, 190, 400, 26, 40
_STYLE = """text{font:13px system-ui,sans-serif;fill:currentColor}.title{font-weight:600}
.a{fill:#3b6ea8}.b{fill:#9dbbdc}"""


@attrs.frozen(kw_only=True)
class _Bar:
    """A labelled row: parts one after another, each with its length and its CSS class."""

    label: str
    parts: tuple[tuple[float, str], ...]
    value: str

    @property
    def length(self) -> float:
        return sum(length for length, _ in self.parts)


def bench_svg(report: BenchReport) -> str:
    """Return the picture as an SVG document that can also stand inside HTML."""
    speeds = [
        _Bar(
            label=_name(method.adapter),
            parts=((method.decode_tokens_per_second, "a"),),
            value=f"{method.decode_tokens_per_second:.1f}" + _percent(method.overhead),
        )
        for method in report.methods
    ]
    memory = [
        _Bar(
            label=f"{'' if index == 0 else '+ '}{_name(load.adapter)}",
            parts=((load.anonymous / 1e6, "a"), (_mapped(load), "b")),
            value=f"{load.anonymous / 1e6:.0f} + {_mapped(load):.0f}",
        )
        for index, load in enumerate(report.loads)
    ]
    charts = [
        ("Tokens per second, one at a time (time per token against the base)", speeds),
        ("Memory of the process after each load, MB: anonymous (dark) + file-backed (light)", memory),
    ]
    body: list[str] = []
    top = 0
    for title, bars in charts:
        body += _chart(title, bars, top)
        top += _TITLE + _ROW * len(bars) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'role="img" aria-label="Benchmark of a bundle"><style>{_STYLE}</style>{"".join(body)}</svg>\n'
    )


def _chart(title: str, bars: Sequence[_Bar], top: int) -> list[str]:
    longest = max(bar.length for bar in bars) or 1
    lines = [f'<text class="title" x="0" y="{top + 22}">{escape(title)}</text>']
    for row, bar in enumerate(bars):
        y = top + _TITLE + row * _ROW
        lines.append(f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(bar.label)}</text>')
        x = float(_LABEL)
        for length, style in bar.parts:
            width = _BAR * length / longest
            lines.append(f'<rect class="{style}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 6}"/>')
            x += width
        lines.append(f'<text x="{x + 6:.1f}" y="{y + 15}">{escape(bar.value)}</text>')
    return lines


def _mapped(load: Loaded) -> float:
    """Return the megabytes mapped from files: each page once if the session tells, else once for each mapping."""
    mapped = load.proportional - load.anonymous if load.proportional else load.file_backed
    return max(0.0, mapped / 1e6)


def _name(adapter: str | None) -> str:
    return "base" if adapter is None else adapter


def _percent(overhead: float | None) -> str:
    return "" if overhead is None else f" ({overhead:+.1%})"
