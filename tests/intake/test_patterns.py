"""Regular expressions of strangers give Python's answers, or none after a while."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_core.intake import patterns
from lora_core.intake.patterns import TooSlowError, matching, quick

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj", "lm_head")
# Two are quick; loops around groups are matched in a process.
HONEST = (
    r".*\.(q_proj|v_proj)",
    r"(model|base)(\.\w+)*\.q_proj",
    r"(?:.*?(?:language|model).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)",
    r"^(?!lm_head)(.*\.)*\w+_proj$",
)
HOSTILE = (r"(.+)+!", r"(.*)*x", r"(m|.)*!", r"(?:(?:.)*)*!", r".*.*.*.*.*.*.*.*!")


@pytest.mark.parametrize("pattern", HONEST)
def test_honest_expressions_match_what_python_matches(pattern: str) -> None:
    assert matching(pattern, NAMES) == {name for name in NAMES if re.fullmatch(pattern, name)}
    assert [quick(each) for each in HONEST] == [True, False, True, False]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_hostile_expressions_are_given_up(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "PATIENCE", 0.3)
    assert not quick(pattern)
    with pytest.raises(TooSlowError, match="takes longer"):
        matching(pattern, ("model." * 200,))


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 10_000 + ")" * 10_000, "a" * 1_000_000])
def test_what_is_no_expression_is_said_to_be_none(pattern: str) -> None:
    with pytest.raises(re.error):
        matching(pattern, NAMES)


def test_the_process_takes_no_code_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    matching(r"(a+)+\.here", ("aaa.here",))
    assert not (tmp_path / "ran").exists()
