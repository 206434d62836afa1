"""Fields of a backend's options class become options of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click
import pytest

from lora_core.cli.option_fields import options_of, taken
from lora_core.hub import PluginHub
from tests.hub.conftest import good, hub_of, site

__all__ = ["hub_of", "site"]

OPTIONS = """
from __future__ import annotations
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
import attrs

def field(default, **metadata):
    return attrs.field(default=default, metadata={"help": "Some help.", **metadata})

@attrs.frozen(kw_only=True)
class Options:
    max_context_len: int = field(64)
    ratio: float | None = field(None)
    multifunction: bool = field(False)
    linear_split: bool = field(True)
    dtype: Literal["fp16", "fp32"] = field("fp16")
    bits: int = field(8, choices=(8, 16))
    group: tuple[str, ...] = field(())
    encodings: Mapping[str, Path] = attrs.field(factory=dict, metadata={"help": "Some help."})
    calibration: Path | None = field(None)
    renamed: str = field("x", flag="--other-name")
    internal: int = 3
"""


@pytest.fixture
def command(site: Path, hub_of: Callable[[Mapping[str, str]], PluginHub]) -> click.Command:
    (site / "made_fine_options.py").write_text(OPTIONS, encoding="utf-8")
    hub = hub_of({"fine": good("fine")})
    return click.Command(
        "export", params=list(options_of(hub.backend_options("fine"))), callback=lambda **values: taken(values)
    )


def parsed(command: click.Command, *words: str) -> dict[str, object]:
    values: dict[str, object] = command.main(list(words), standalone_mode=False)
    return values


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("--max-context-len", "7"), {"max_context_len": 7}),
        (("--ratio", "0.5"), {"ratio": 0.5}),
        (("--multifunction",), {"multifunction": True}),
        (("--no-linear-split",), {"linear_split": False}),
        (("--dtype", "fp32"), {"dtype": "fp32"}),
        (("--bits", "16"), {"bits": 16}),
        (("--group", "a=b", "--group", "c=d"), {"group": ("a=b", "c=d")}),
        (("--encodings", "a=x.json"), {"encodings": ("a=x.json",)}),
        (("--calibration", "some/file"), {"calibration": Path("some/file")}),
        (("--other-name", "y"), {"renamed": "y"}),
    ],
)
def test_given_options_arrive_by_field_name_and_type(
    command: click.Command, words: tuple[str, ...], expected: dict[str, object]
) -> None:
    assert parsed(command, *words) == expected


@pytest.mark.parametrize(
    "words", [("--max-context-len", "x"), ("--dtype", "fp8"), ("--bits", "9"), ("--internal", "4")]
)
def test_other_values_and_fields_without_help_are_refused(command: click.Command, words: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        parsed(command, *words)


def test_help_shows_defaults(command: click.Command) -> None:
    text = command.get_help(click.Context(command))
    assert "[default: 64]" in text
    assert "[default: off]" in text
    assert "[default: on]" in text
    assert "Repeatable." in text
