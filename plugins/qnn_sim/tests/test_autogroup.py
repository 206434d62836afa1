"""Automatic grouping finds the fewest groups within the limit."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_core_qnn_sim.autogroup import fewest, greedy

from plugins.qnn_sim.tests import tiny


def _graph(names: list[str], friends: set[frozenset[str]]) -> Any:
    def feasible(members: frozenset[str]) -> bool:
        return all(frozenset(pair) in friends for pair in combinations(sorted(members), 2))

    return feasible


@settings(deadline=None)  # a busy machine is no fault
@given(st.sets(st.sampled_from([frozenset(pair) for pair in combinations("abcde", 2)])))
def test_no_partition_into_fewer_feasible_groups_exists(friends: set[frozenset[str]]) -> None:
    feasible = _graph(list("abcde"), friends)
    found = fewest(list("abcde"), feasible)
    assert sorted(name for part in found for name in part) == list("abcde")
    assert all(feasible(part) for part in found)
    assert len(found) == _cliques_needed("abcde", feasible)
    assert len(greedy(list("abcde"), feasible)) >= len(found)


def _cliques_needed(names: str, feasible: Any) -> int:
    """Count by dynamic programming over subsets: another way to the same number."""
    best = {0: 0}
    for mask in range(1, 1 << len(names)):
        costs, part = [], mask
        while part:
            members = frozenset(name for i, name in enumerate(names) if part >> i & 1)
            if feasible(members):
                costs.append(best[mask ^ part] + 1)
            part = (part - 1) & mask
        best[mask] = min(costs)
    return best[(1 << len(names)) - 1]


@pytest.mark.parametrize(("limit", "count"), [(100.0, 1), (1e-9, None)])
def test_groups_keep_every_member_within_the_limit(
    tmp_path: Path, model: Any, five: Any, limit: float, count: int | None
) -> None:
    loud = tiny.adapter("loud", model.summary, seed=8, size=1.5)
    heard: list[Any] = []
    job = tiny.make_job(model, [*five[:2], loud], group=("auto",), max_sqnr_drop=limit, lora_bits=8, act_bits=8)
    bundle = tiny.export(job, tmp_path / "out", heard)
    groups = bundle.manifest.detail["groups"]
    assert sorted(name for members in groups.values() for name in members) == ["a1", "a2", "loud"]
    assert count is None or len(groups) == count
    table = [event.message for event in heard if type(event).__name__ == "Noted"]
    assert table[0].split() == ["group", "adapter", "own", "SQNR", "shared", "drop"]
    drops = [float(line.split()[-2]) for line in table[1:]]
    assert len(drops) == 3
    assert max(drops) <= limit + 0.005


def test_a_loud_adapter_is_kept_apart_from_quiet_ones(tmp_path: Path, model: Any, five: Any) -> None:
    loud = tiny.adapter("loud", model.summary, seed=8, size=1.5)
    job = tiny.make_job(model, [*five[:2], loud], group=("auto",), max_sqnr_drop=2.0, lora_bits=8, act_bits=8)
    groups = tiny.export(job, tmp_path / "out").manifest.detail["groups"]
    assert ["loud"] in list(groups.values())
