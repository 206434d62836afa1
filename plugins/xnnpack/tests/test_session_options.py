"""What a session can be told, read from plain data."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_core_xnnpack.runtime.packed_cache import packed_name
from lora_core_xnnpack.session_options import SessionOptions

from lora_core.errors import UsageError


def test_nothing_told_means_shared_weights_and_no_packed_file():
    assert SessionOptions.read({}) == SessionOptions(weight_cache=True, threads=0, packed_cache=None)


@pytest.mark.parametrize(
    ("given", "directory"),
    [(True, Path("/caches/lora-core/packed")), (False, None), (None, None), ("/some/where", Path("/some/where"))],
)
def test_packed_weights_go_to_the_users_cache_or_where_told(monkeypatch, given, directory):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert SessionOptions.read({"packed_cache": given}).packed_cache == directory


def test_everything_wrong_is_told_at_once():
    with pytest.raises(UsageError) as told:
        SessionOptions.read({"weight_cash": True, "threads": -1, "weight_cache": "on", "packed_cache": 3})
    assert [problem.what for problem in told.value.problems] == [
        "The XNNPACK session has no option 'weight_cash'",
        "Option 'weight_cache' is 'on', and must be True or False",
        "Option 'threads' is -1, and must be a number of threads",
        "Option 'packed_cache' is 3, and must be a directory",
    ]


def test_packed_weights_of_another_foundation_have_another_name():
    assert packed_name("a" * 64) == packed_name("a" * 64) != packed_name("b" * 64)
