"""Benchmarks, on a session that takes no time worth measuring."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import attrs
import pytest

from lora_core.errors import UsageError
from lora_core.events import StageAdvanced, StageFinished
from lora_core.runtime.bench import BenchSettings, MethodSpeed, SwitchCost, bench
from lora_core.runtime.plot import bench_svg

SETTINGS = BenchSettings(prompt_tokens=6, decode_tokens=3, rounds=2)
SVG = "{http://www.w3.org/2000/svg}"


def test_every_method_reads_the_prompt_and_takes_steps_in_every_round(session):
    bench(session, ["ab", "abc"], SETTINGS)
    rounds = [(adapter, len(tokens), position) for adapter, tokens, position in session.calls]
    assert rounds[:4] == [(None, 6, 0), (None, 1, 6), (None, 1, 7), (None, 1, 8)]
    for adapter in (None, "ab", "abc"):
        expected = 4 if adapter is None else 2  # the base is measured alone first
        assert rounds.count((adapter, 6, 0)) == rounds.count((adapter, 1, 8)) == expected


def test_methods_take_turns(session):
    bench(session, ["ab"], SETTINGS)
    prefills = [adapter for adapter, tokens, _ in session.calls if len(tokens) == 6]
    assert prefills == [None, None, None, "ab", None, "ab"]


def test_adapters_are_loaded_after_the_base_was_measured_alone(session):
    report = bench(session, ["ab", "abc"], SETTINGS)
    assert [load.adapter for load in report.loads] == [None, "ab", "abc"]
    assert [method.adapter for method in report.methods] == [None, "ab", "abc"]


def test_overhead_is_the_time_per_token_against_the_base(session):
    base, other = bench(session, ["ab"], SETTINGS).methods
    assert base.overhead is None
    assert other.overhead == pytest.approx(other.step_seconds / base.step_seconds - 1)


def test_speeds_and_switch_cost_follow_from_the_times():
    speed = MethodSpeed(adapter=None, prompt_tokens=64, prefill_seconds=0.5, step_seconds=0.02)
    assert speed.prefill_tokens_per_second == pytest.approx(128)
    assert speed.decode_tokens_per_second == pytest.approx(50)
    assert SwitchCost(same=0.02, changed=0.025).seconds == pytest.approx(0.005)


def test_a_bundle_without_adapters_has_no_switch_cost(session):
    assert bench(session, [], SETTINGS).switch is None


def test_the_report_is_plain_data(session):
    told = json.loads(json.dumps(bench(session, ["ab"], SETTINGS).to_json()))
    assert told["settings"] == attrs.asdict(SETTINGS)
    assert told["methods"][1]["adapter"] == "ab"
    assert told["switch"]["seconds"] == pytest.approx(told["switch"]["changed"] - told["switch"]["same"])
    assert told["loads"][0]["anonymous"] > 0
    assert told["facts"]["runtime"] == "counting"


def test_progress_is_told(session):
    events = []
    bench(session, ["ab"], SETTINGS, emit=events.append)
    advanced = [(each.done, each.total) for each in events if isinstance(each, StageAdvanced)]
    assert advanced == [(1, 2), (2, 2), (1, 2), (2, 2)]
    assert [each.stage for each in events if isinstance(each, StageFinished)][-1] == "Measure changes of adapter"


def test_more_tokens_than_the_context_holds_are_refused(session):
    with pytest.raises(UsageError, match="30 prompt tokens and 3 more do not fit in the context of 32"):
        bench(session, [], BenchSettings(prompt_tokens=30, decode_tokens=3))


def test_the_picture_has_a_bar_for_every_method_and_two_parts_for_every_load(session):
    report = bench(session, ["ab", "abc"], SETTINGS)
    picture = ET.fromstring(bench_svg(report))
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert len(list(picture.iter(f"{SVG}rect"))) == 3 + 2 * 3
    assert {"base", "ab", "+ abc"} <= set(texts)


def test_a_session_that_does_not_count_pages_once_is_shown_with_its_file_backed_memory(session):
    report = bench(session, [], SETTINGS)
    (load,) = report.loads
    told = attrs.evolve(load, anonymous=5_000_000, file_backed=3_000_000, proportional=0)
    texts = [text.text for text in ET.fromstring(bench_svg(attrs.evolve(report, loads=(told,)))).iter(f"{SVG}text")]
    assert "5 + 3" in texts


def test_bars_are_in_proportion(session):
    report = bench(session, ["ab"], SETTINGS)
    slow = attrs.evolve(report.methods[1], step_seconds=2 * report.methods[0].step_seconds, overhead=1.0)
    picture = ET.fromstring(bench_svg(attrs.evolve(report, methods=(report.methods[0], slow))))
    first, second = [float(bar.get("width")) for bar in picture.iter(f"{SVG}rect")][:2]
    assert second == pytest.approx(first / 2, abs=0.1)
    assert "(+100.0%)" in bench_svg(attrs.evolve(report, methods=(report.methods[0], slow)))


def test_names_are_escaped(session):
    report = bench(session, ["ab"], SETTINGS)
    odd = attrs.evolve(report.methods[0], adapter="a<b&c")
    assert "a&lt;b&amp;c" in bench_svg(attrs.evolve(report, methods=(odd,)))
