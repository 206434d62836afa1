"""The vendor's worked example: {a1, a2}, {a3, a4}, {a5} give exactly seven sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lora_core_qnn_sim.artifacts.context_binary import read_context
from lora_core_qnn_sim.artifacts.section import read_section
from lora_core_qnn_sim.backend import QnnSimBackend
from lora_core_qnn_sim.errors import GroupingError
from lora_core_qnn_sim.graph.nodes import lora_activations, lora_weights
from lora_core_qnn_sim.grouping import parse_groups, read_groups

from lora_core.errors import LoraCoreError
from plugins.qnn_sim.tests import tiny

SEVEN = {
    "llm_a1_weights.bin": "weights",
    "llm_a1_encodings.bin": "encodings",
    "llm_a2_weights.bin": "weights",
    "llm_a3_weights.bin": "weights",
    "llm_a3_encodings.bin": "encodings",
    "llm_a4_weights.bin": "weights",
    "llm_a5.bin": "combined",
}
YAML = """use_case:
  - {name: a1, encodings: g1.encodings, weights_only: True, encodings_only: True}
  - {name: a2, graph: llm, safetensors: a2.safetensors, encodings: g1.encodings, weights_only: True}
  - {name: a3, encodings: g2.encodings, weights_only: True, encodings_only: True}
  - {name: a4, graph: llm, safetensors: a4.safetensors, encodings: g2.encodings, weights_only: True}
  - {name: a5, graph: llm, safetensors: a5.safetensors, encodings: g3.encodings}
"""


def test_the_sections_are_exactly_the_seven_and_the_zero_section(grouped: Any) -> None:
    assert set(tiny.sections(grouped)) == {*SEVEN, "llm_default_adapter.bin"}


def test_each_section_holds_what_its_part_says_and_nothing_else(grouped: Any) -> None:
    spec = read_context(grouped.file("context.bin")).spec
    weights = set(lora_weights(spec))
    encodings = weights | set(lora_activations(spec))
    for name, part in SEVEN.items():
        section = read_section(grouped.path / "sections" / name)
        assert section.part == part
        assert set(section.weights) == (set() if part == "encodings" else weights)
        assert set(section.encodings) == (set() if part == "weights" else encodings)


def test_members_of_a_group_share_one_set_of_encodings_and_groups_do_not(grouped: Any) -> None:
    ids = {n: read_section(grouped.path / "sections" / n).encodings_id for n in SEVEN}
    assert ids["llm_a1_encodings.bin"] == ids["llm_a1_weights.bin"] == ids["llm_a2_weights.bin"]
    assert ids["llm_a3_encodings.bin"] == ids["llm_a3_weights.bin"] == ids["llm_a4_weights.bin"]
    assert len(set(ids.values())) == 3


def test_weights_are_the_adapters_own_on_the_shared_grid(grouped: Any, five: Any) -> None:
    encodings = read_section(grouped.path / "sections" / "llm_a1_encodings.bin").encodings
    for adapter in five[:2]:
        section = read_section(grouped.path / "sections" / f"llm_{adapter.name}_weights.bin")
        for update in adapter.updates:
            # Rotation changes A but not the product's norm per output, and not B of q and v.
            name = f"{update.module.removeprefix('model.')}.lora_b.weight"
            real = section.weights[name] * encodings[name][0]
            assert np.abs(real - update.tensors["b"].read() * update.scaling).max() <= encodings[name][0] * 0.51


def test_the_zero_section_brings_back_the_base(grouped: Any) -> None:
    with QnnSimBackend().open(grouped, None) as session:
        base = session.step(None, [1, 2, 3], 0)
        assert not np.array_equal(session.step("a3", [1, 2, 3], 0), base)
        assert np.array_equal(session.step(None, [1, 2, 3], 0), base)


def test_the_vendors_yaml_gives_the_same_bytes_as_group_options(
    tmp_path: Path, model: Any, five: Any, grouped: Any
) -> None:
    (tmp_path / "groups.yaml").write_text(YAML)
    bundle = tiny.export(tiny.make_job(model, five, groups=tmp_path / "groups.yaml"), tmp_path / "out")
    assert tiny.sections(bundle) == tiny.sections(grouped)


def test_a_yaml_with_repeated_keys_is_refused_since_only_the_last_would_count(tmp_path: Path) -> None:
    (tmp_path / "groups.yaml").write_text("use_case:\n  - {name: a1}\nuse_case:\n  - {name: a2}\n")
    with pytest.raises(GroupingError, match="2 keys `use_case`"):
        read_groups(tmp_path / "groups.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("use_case: 3", "no list"),
        ("[", "Cannot read"),
        ("use_case:\n  - {name: a, weights_only: True}", "no use case above it"),
        ("use_case:\n  - {name: a, encodings_only: True}", "no weights to apply"),
        ("use_case:\n  - {name: a, weights_only: !!bool maybe}", "neither true nor false: 'maybe'"),
        ("use_case:\n  - {name: [a]}", "`name` of a use case is no text"),
        ("use_case:\n  - {name: a, name: b}", "2 keys `name`"),
        ("use_case:\n  - {name: &a a, encodings: *a}", "aliases"),
        ("use_case:\n" + "- a\n" * 160_000, "more than 150,000 values"),
    ],
)
def test_a_wrong_yaml_is_refused_saying_why(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "groups.yaml").write_text(text)
    with pytest.raises(GroupingError, match=said):
        read_groups(tmp_path / "groups.yaml")


@pytest.mark.parametrize("parser", ["CBaseLoader", "BaseLoader"])
def test_yaml_is_text_whatever_its_tags_and_colons_say(
    tmp_path: Path, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml, "CBaseLoader", getattr(yaml, parser))
    text = ":".join("1" * 100_000)  # a number of minutes and seconds, which takes PyYAML minutes
    (tmp_path / "groups.yaml").write_text(
        f"use_case:\n- {{name: {text}, weights_only: yes, encodings_only: !!str on}}\n- {{name: !!float x}}\n"
    )
    (group,) = read_groups(tmp_path / "groups.yaml")
    assert group.members == (text,)


def test_without_libyaml_less_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CBaseLoader")
    (tmp_path / "groups.yaml").write_text("use_case: [" + "a," * 41_000 + "]")
    with pytest.raises(GroupingError, match="more than 40,000 values"):
        read_groups(tmp_path / "groups.yaml")


def test_every_wrong_group_is_reported_together(model: Any, five: Any) -> None:
    job = tiny.make_job(model, five, group=("g=a1,a9", "h=a1", "h=a2"))
    said = "\n".join(str(problem) for problem in QnnSimBackend().check(job))
    assert "'a9', which is no adapter" in said
    assert "'a1' is in two groups" in said
    assert "two groups 'h'" in said


def test_a_group_word_without_members_is_refused() -> None:
    with pytest.raises(GroupingError, match="NAME=a,b"):
        parse_groups(["fun"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group": ("auto", "g=a1")}, "others cannot be given"),
        ({"group": ("g=a1,a2",), "quant_updatable": "none"}, "in mode 'none' all adapters share"),
        ({"group": ("auto",), "hot_switch": True}, "nothing to group"),
        ({"group": ("g=a1",), "groups": "x.yaml"}, "given twice"),
        ({"input_len": 64}, "more than a context of 32 tokens"),
        ({"context_len": 4096}, "more than the base's 128"),
        ({"encodings": ("a9=nowhere",)}, "no adapter of this export"),
        ({"encodings": ("a1",)}, "NAME=FILE"),
        ({"rotate": True, "emit_qairt": "dir"}, "not a rotated one"),
        ({"hot_switch": True, "emit_qairt": "dir"}, "no sections to hand over"),
    ],
)
def test_options_that_contradict_each_other_are_refused(model: Any, five: Any, options: Any, said: str) -> None:
    assert said in "\n".join(str(problem) for problem in QnnSimBackend().check(tiny.make_job(model, five, **options)))


def test_an_option_out_of_range_is_refused_when_it_is_made(model: Any) -> None:
    with pytest.raises(LoraCoreError, match="must be more than 0"):
        tiny.make_job(model, input_len=0)
