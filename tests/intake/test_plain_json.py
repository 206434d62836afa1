"""JSON of strangers is plain data within limits, or refused with what is wrong."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.intake.limits import DEPTH
from lora_core.intake.plain_json import parse_json

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=EXAMPLES)
@given(values, st.booleans())
def test_plain_data_is_read_as_json_reads_it(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"NaN", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e400]", "1e400"),
        (b"[-1e400]", "too large"),
        (b"1" * 21, "21 digits"),
        (b"1" * 100_000, "digits"),
        (b'{"a": 1, "b": 2, "a": 1}', "'a' more than once"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b"\xff", "utf-8"),
        (b"\xed\xa0\x80", "utf-8"),
        (b"", "Expecting value"),
        (b"[" * 1_000_000, "deeper"),
        (b'{"a":' * 1_000_000, "deeper"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_plain_data_is_refused(text: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_json(text)


def nested(depth: int, inner: str) -> str:
    """Return `inner` in so many lists and objects, beside strings that look like brackets and quotes."""
    opened = "".join('["][", ' if level % 2 else '{"\\"}{": 1, "a": ' for level in range(depth))
    closed = "".join("]" if level % 2 else "}" for level in reversed(range(depth)))
    return opened + inner + closed


@pytest.mark.parametrize("inner", ["1", '"\\\\"', '"[[[["', '"]]]]"', '""'])
def test_depth_is_counted_whatever_strings_say(inner: str) -> None:
    parse_json(nested(DEPTH, inner))
    with pytest.raises(ValueError, match="deeper"):
        parse_json(nested(DEPTH + 1, inner))


def test_pairs_of_surrogates_are_characters() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"
