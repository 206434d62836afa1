"""What a session can be told, on the command line and by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_core_xnnpack.session_options import XnnpackSessionOptions

from lora_core.errors import UsageError
from lora_core.hub import PluginHub


def told(**values: object) -> XnnpackSessionOptions:
    options = PluginHub().session_options("xnnpack", values)
    assert isinstance(options, XnnpackSessionOptions)
    return options


def test_nothing_told_means_shared_weights_packed_in_a_file_where_that_is_worth_it() -> None:
    assert told() == XnnpackSessionOptions(weight_cache=True, threads=0, packed_cache="auto")


@pytest.mark.parametrize(("given", "value"), [("on", True), ("off", False), (True, True), (False, False)])
def test_the_weight_cache_is_switched_by_word_or_by_value(given: object, value: bool) -> None:
    assert told(weight_cache=given).weight_cache is value


@pytest.mark.parametrize(
    ("given", "directory"),
    [
        (True, Path("/caches/lora-core/packed")),
        ("on", Path("/caches/lora-core/packed")),
        (False, None),
        ("off", None),
        (None, None),
        ("auto", "auto"),
        (Path("auto"), "auto"),
        ("/some/where", Path("/some/where")),
    ],
)
def test_packed_weights_go_to_the_users_cache_or_where_told(
    monkeypatch: pytest.MonkeyPatch, given: object, directory: Path | str | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert told(packed_cache=given).packed_cache == directory


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        told(weight_cash=True, threads=-1, weight_cache="maybe", packed_cache=3)
    whose = "A session of backend 'xnnpack'"
    assert [problem.what for problem in caught.value.problems] == [
        f"{whose} has no option 'weight_cash'",
        f"{whose} refuses threads: threads is -1, and must be a number of threads",
        f"{whose} refuses weight_cache: weight_cache is 'maybe', and must be on or off",
        f"{whose} refuses packed_cache: packed_cache is 3, and must be a directory",
    ]
