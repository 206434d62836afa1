"""Which of a backend's options a manifest records."""

from pathlib import Path

import attrs

from lora_core.pipeline.recording import plain_options


@attrs.frozen(kw_only=True)
class Options:
    layout: str = attrs.field(default="split")
    lora: str = attrs.field(default="constants", metadata={"omit_if_default": True})
    vectors: Path | None = None


def test_an_option_is_recorded_at_its_default_too() -> None:
    assert plain_options(Options()) == {"layout": "split", "vectors": None}


def test_an_option_that_came_later_is_recorded_where_it_was_given() -> None:
    assert plain_options(Options(lora="inputs"))["lora"] == "inputs"


def test_of_a_path_only_the_name_is_recorded() -> None:
    assert plain_options(Options(vectors=Path("/home/someone/vectors.bin")))["vectors"] == "vectors.bin"
