"""What a source has is listed whole: what each adapter is, what it fits, and why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import lora_core
from lora_core.adapters.reference import AdapterReference
from lora_core.errors import UsageError
from lora_core.pipeline.sources import names_of
from lora_core.specs import ReservedNames


@pytest.fixture
def listed(hub):
    """Return the entries of a source by name."""

    def run(source: Path, *bundles) -> dict:
        return {entry.name: entry for entry in lora_core.catalogue(source, bundles=bundles, hub=hub)}

    return run


def test_adapters_are_found_at_any_depth_and_described(make_adapter, listed, tmp_path):
    make_adapter("team/deep/pirate", rank=4)
    entry = listed(tmp_path / "adapters")["team_deep_pirate"]
    assert (entry.place, entry.base, entry.rank, entry.modules) == ("team/deep/pirate", "fake/base", 4, 4)
    assert entry.size == 4 * 2 * 4 * 8 * 4  # four modules, two matrices of rank 4 and width 8, four bytes
    assert entry.digest is not None
    assert entry.problems == ()


def test_an_adapter_is_a_source_of_one(make_adapter, listed):
    assert [(entry.name, entry.place) for entry in listed(make_adapter("pirate")).values()] == [("pirate", ".")]


def test_the_template_that_an_adapter_fits_is_named(make_adapter, export, listed, tmp_path):
    small, large = make_adapter("small", rank=1), make_adapter("large", rank=4)
    bundle = export("b", {"small": small, "large": large}, plan="per-shape")
    fits = {name: entry.fits[0].plan for name, entry in listed(tmp_path / "adapters", bundle).items()}
    assert set(fits.values()) == {0, 1}


def test_why_an_adapter_does_not_fit_is_told_and_stops_no_other(make_adapter, export, listed, tmp_path):
    bundle = export("b", {"good": make_adapter("good", rank=2)})
    make_adapter("wide", rank=8)
    make_adapter("elsewhere", targets=["k_proj"])
    (make_adapter("damaged") / "adapter_model.safetensors").write_bytes(b"short")
    make_adapter("doubtful", base="another/model")
    found = listed(tmp_path / "adapters", bundle)
    why = {name: " ".join(map(str, entry.fits[0].problems)) for name, entry in found.items()}
    assert why["good"] == why["doubtful"] == ""
    assert "has rank 8" in why["wide"]
    assert "no slot" in why["elsewhere"]
    assert found["damaged"].digest is None
    assert found["damaged"].problems
    assert found["doubtful"].fits[0].doubt is not None


def test_a_package_fits_the_bundle_that_it_was_made_for(make_adapter, export, listed, hub, tmp_path):
    reference = AdapterReference(name="pirate", directory=make_adapter("pirate"))
    mine, other = export("mine", max_rank=4, targets=["q_proj", "v_proj"]), export("other", [reference])
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    lora_core.pack(mine, reference, out=shelf / "pirate.lora", hub=hub)
    entry = listed(shelf, mine, other)["pirate"]
    assert [fit.plan for fit in entry.fits] == [0, None]
    assert "template" in str(entry.fits[1].problems[0])
    alone = listed(shelf)["pirate"]
    assert (alone.rank, alone.digest, alone.base) == (2, entry.digest, "fake/base")


def test_hidden_directories_and_links_are_left_out(make_adapter, listed, tmp_path):
    shutil.copytree(make_adapter("pirate"), tmp_path / "adapters/.cache/pirate")
    (tmp_path / "adapters/again").symlink_to(tmp_path / "adapters/pirate")
    assert list(listed(tmp_path / "adapters")) == ["pirate"]


@pytest.mark.parametrize("source", ["nowhere", "empty"])
def test_a_source_without_adapters_is_refused(listed, tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="There is no"):
        listed(tmp_path / source)


def test_names_are_made_of_places_and_depend_on_no_other_name():
    alone = names_of(["a/b", "c"], "source", ReservedNames())
    assert alone == {"a/b": "a_b", "c": "c"}
    clashing = names_of(["a/b", "a_b", "A-B", "c"], "source", ReservedNames())
    assert clashing["c"] == "c"
    assert len({name.lower() for name in clashing.values()}) == 4
    assert clashing == names_of(["c", "A-B", "a_b", "a/b"], "source", ReservedNames())
