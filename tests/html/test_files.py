"""Reports are shown for the bundle they were made of, and for no other."""

from __future__ import annotations

import json

import attrs
import pytest

from lora_core.bundle.bundle import BundledAdapter
from lora_core.errors import InputError, StorageError
from lora_core.html.files import read_reports, write_report


def test_reports_are_read_back_by_kind(bundle, tmp_path):
    write_report("verify", {"passed": True}, bundle, tmp_path / "v.json")
    write_report("bench", {"rounds": 3}, bundle, tmp_path / "b.json")
    found = read_reports([tmp_path / "v.json", tmp_path / "b.json"], bundle)
    assert found["verify"]["passed"] is True
    assert found["bench"]["rounds"] == 3


def test_the_report_of_another_bundle_is_refused(bundle, tmp_path):
    write_report("verify", {}, bundle, tmp_path / "v.json")
    more = BundledAdapter(name="new", digest="d", foundation="f", rank=1, modules=1)
    changed = attrs.evolve(bundle, manifest=attrs.evolve(bundle.manifest, adapters=(more,)))
    with pytest.raises(InputError, match="another bundle, or of this one before it was changed"):
        read_reports([tmp_path / "v.json"], changed)


def test_all_files_that_are_no_reports_are_named(bundle, tmp_path):
    (tmp_path / "one.json").write_text("[]")
    (tmp_path / "two.json").write_text("no json")
    write_report("verify", {"schema_version": 2}, bundle, tmp_path / "newer.json")
    with pytest.raises(InputError) as caught:
        read_reports([tmp_path / name for name in ("one.json", "two.json", "newer.json")], bundle)
    told = [problem.what for problem in caught.value.problems]
    assert [what.split()[0] for what in told] == ["one.json", "two.json", "newer.json"]
    assert "schema version 2" in told[2]


def test_a_file_that_is_not_there_is_a_storage_error(bundle, tmp_path):
    with pytest.raises(StorageError):
        read_reports([tmp_path / "none.json"], bundle)


def test_reports_are_json_that_says_what_they_are(bundle, tmp_path):
    write_report("bench", {"rounds": 3}, bundle, tmp_path / "b.json")
    document = json.loads((tmp_path / "b.json").read_text())
    assert document["report"] == "bench"
    assert document["schema_version"] == 1
    assert document["foundation"] == bundle.manifest.foundation
