"""Export writes a whole bundle, the same for the same inputs, or says everything that is wrong."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lora_core.bundle.store import open_bundle, verify_hashes
from lora_core.errors import (
    AdapterError,
    BundleError,
    LoraCoreError,
    PluginError,
    PolicyError,
    UnsupportedError,
    UsageError,
)
from lora_core.events import Noted, StageFinished, Warned
from lora_core.models.base import TokenizerFiles


def test_a_bundle_has_the_foundation_once_and_files_for_each_adapter(export, make_adapter, tmp_path):
    export("b", {"pirate": make_adapter("pirate"), "shout": make_adapter("shout", rank=4)})
    bundle = open_bundle(tmp_path / "b")
    assert verify_hashes(bundle) == []
    assert [adapter.name for adapter in bundle.manifest.adapters] == ["pirate", "shout"]
    assert [method.name for method in bundle.manifest.methods] == ["forward", "pirate", "shout"]
    assert [a.path for a in bundle.manifest.artifacts if a.role == "foundation"] == ["foundation.safetensors"]
    assert {a.path for a in bundle.manifest.artifacts if a.adapter == "pirate"} == {"pirate.safetensors", "pirate.json"}
    assert bundle.manifest.versions.keys() == {"fake", "lora-core"}


def test_the_order_of_adapters_does_not_change_a_byte(export, make_adapter, contents, tmp_path):
    a, b, c = make_adapter("a"), make_adapter("b", rank=3), make_adapter("c", targets=["k_proj"])
    export("one", {"a": a, "b": b, "c": c})
    export("two", {"c": c, "a": a, "b": b})
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_foundation_has_the_same_bytes_with_zero_one_or_many_adapters(export, make_adapter, contents, tmp_path):
    many = {name: make_adapter(name) for name in ("a", "b", "c")}
    export("none")
    export("one", {"a": many["a"]})
    export("many", many)
    stored = {contents(tmp_path / name)["foundation.safetensors"] for name in ("none", "one", "many")}
    assert len(stored) == 1


def test_the_base_is_loaded_once_whatever_the_number_of_adapters(export, make_adapter, fake):
    model = fake.FakeModel()
    export("b", {name: make_adapter(name) for name in ("a", "b", "c", "d")}, model=model)
    assert model.loads == 1


def test_nothing_of_this_machine_is_in_the_bundle(export, make_adapter, contents, tmp_path):
    export("b", {"a": make_adapter("a")}, options={"extra": tmp_path / "some" / "file.txt"})
    files = contents(tmp_path / "b")
    assert all(str(tmp_path).encode() not in data for data in files.values())
    assert json.loads(files["manifest.json"])["options"]["extra"] == "file.txt"


def test_tokenizer_files_travel_with_the_bundle(export, fake, tmp_path):
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    files = TokenizerFiles(files=(tmp_path / "tokenizer.json", tmp_path / "chat_template.jinja"))
    bundle = export("b", model=fake.FakeModel(files=files))
    assert {a.path for a in bundle.manifest.artifacts if a.role == "tokenizer"} == {
        "tokenizer/tokenizer.json",
        "tokenizer/chat_template.jinja",
    }
    assert (tmp_path / "b/tokenizer/chat_template.jinja").read_text() == "{{ x }}"
    assert verify_hashes(bundle) == []


def test_a_union_plan_has_one_template_with_the_largest_ranks(export, make_adapter):
    bundle = export("b", {"a": make_adapter("a", rank=4), "b": make_adapter("b", targets=["k_proj", "v_proj"])})
    (plan,) = bundle.manifest.plans
    assert {slot.module.rpartition(".")[2]: slot.rank for slot in plan.slots} == {"q_proj": 4, "k_proj": 2, "v_proj": 4}


def test_a_plan_per_shape_has_a_template_for_each_shape_and_no_padding(export, make_adapter):
    adapters = {"a": make_adapter("a", rank=4), "b": make_adapter("b"), "c": make_adapter("c")}
    bundle = export("b", adapters, plan="per-shape")
    assert [plan.max_rank for plan in bundle.manifest.plans] == [2, 4]
    assert {adapter.name: adapter.plan for adapter in bundle.manifest.adapters} == {"a": 1, "b": 0, "c": 0}
    assert sum(artifact.role == "template" for artifact in bundle.manifest.artifacts) == 2


def test_a_plan_per_shape_can_reserve_room_of_its_own(export, make_adapter):
    bundle = export("b", {"a": make_adapter("a")}, plan="per-shape", max_rank=6, targets=["k_proj"])
    assert sorted(plan.max_rank for plan in bundle.manifest.plans) == [2, 6]


def test_without_adapters_and_room_there_is_no_template(export):
    bundle = export("b")
    assert bundle.manifest.plans == ()
    assert [method.name for method in bundle.manifest.methods] == ["forward"]


def test_room_can_be_reserved_without_an_adapter(export):
    bundle = export("b", max_rank=16, targets="all-linear")
    assert [(len(plan.slots), plan.max_rank) for plan in bundle.manifest.plans] == [(6, 16)]


def test_what_the_plan_costs_and_a_contradicting_base_are_told(export, make_adapter):
    told = []
    adapters = {"a": make_adapter("a", rank=4), "b": make_adapter("b", base="someone/else")}
    export("b", adapters, emit=told.append)
    notes = [event.message for event in told if isinstance(event, Noted)]
    assert any("one template with 4 slots up to rank 4" in note and "padding" in note for note in notes)
    assert any("--plan per-shape there would be 2 templates" in note for note in notes)
    warnings = [event.message for event in told if isinstance(event, Warned)]
    assert len(warnings) == 1
    assert "'b'" in warnings[0]
    assert "someone/else" in warnings[0]
    assert {event.stage for event in told if isinstance(event, StageFinished)} == {"Check", "Write the bundle"}


def test_problems_of_every_kind_are_reported_together(export, make_adapter, tmp_path):
    broken = make_adapter("broken")
    (broken / "adapter_model.safetensors").write_bytes(b"nonsense")
    export("b")
    with pytest.raises(LoraCoreError) as caught:
        export("b", {"broken": broken}, policy="8da4w", options={"layot": "split"})
    text = str(caught.value)
    for part in ("already a bundle", "8da4w", "layot", "broken"):
        assert part in text
    assert isinstance(caught.value, BundleError)


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"backend": "fak"}, UsageError, "Did you mean 'fake'"),
        ({"policy": "8da4w"}, PolicyError, "cannot do policy '8da4w'.*fp32"),
        ({"policy": "fp23"}, PolicyError, "fp23"),
        ({"options": {"layout": "odd"}}, UsageError, "layout"),
        ({"options": {"fail": "check"}}, UnsupportedError, "The check refuses"),
        ({"options": {"fail": "export"}}, PluginError, "the lowering broke"),
        ({"options": {"fail": "unlisted"}}, PluginError, "stray.bin"),
        ({"model": "/no/such/model"}, LoraCoreError, "/no/such/model"),
        ({"plan": "perfect"}, UsageError, "perfect"),
        ({"plan": "per-shape", "max_rank": 4}, UsageError, "--targets"),
        ({"max_rank": 1}, UsageError, "--max-rank"),
        ({"adapters": {"forward": "x", "1st": "y"}}, UsageError, "(?s)forward.*1st"),
        ({"adapters": {"gone": "/no/such/adapter"}}, AdapterError, "/no/such/adapter"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(export, make_adapter, tmp_path, more, kind, message):
    adapters = more.pop("adapters", None) or {"a": make_adapter("a")}
    with pytest.raises(kind, match=message):
        export("b", adapters, **more)
    assert not (tmp_path / "b").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".b")]


def test_an_interrupted_export_leaves_nothing(export, make_adapter, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export("b", {"one": make_adapter("one")}, options={"fail": "interrupt"})
    assert [path.name for path in tmp_path.iterdir()] == ["adapters"]


def test_what_an_export_will_take_is_told_before_it_begins(export):
    events = []
    export("b", options={"writes": 1000}, emit=events.append)
    told = [type(event).__name__ for event in events]
    assert told.index("Estimated") < [getattr(event, "stage", "") for event in events].index("Write the bundle")
    assert not [event for event in events if isinstance(event, Warned)]


def test_a_disk_without_room_is_warned_of(export):
    events = []
    export("b", options={"writes": 10**18}, emit=events.append)
    (warning,) = [event.message for event in events if isinstance(event, Warned)]
    assert warning.startswith("About 1000000.0 TB will be written, and ")


def test_force_replaces_a_bundle_only_when_the_new_one_is_whole(export, make_adapter, contents, tmp_path):
    export("b", {"a": make_adapter("a")})
    before = contents(tmp_path / "b")
    with pytest.raises(PluginError):
        export("b", force=True, options={"fail": "export"})
    assert contents(tmp_path / "b") == before
    assert export("b", force=True).manifest.adapters == ()
    assert "a.json" not in contents(tmp_path / "b")
