"""A bundle of many adapters: their records are in files of their own, as safe as the manifest, read when asked for."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from lora_core.bundle import records as records_module
from lora_core.bundle.hashing import file_sha256
from lora_core.bundle.json_schema import manifest_schema, records_schema
from lora_core.bundle.manifest import dumps, loads
from lora_core.bundle.paths import JOURNAL, MANIFEST, STATE
from lora_core.bundle.store import open_bundle, verify_hashes
from lora_core.errors import BundleError

BASE = {"base.bin": b"base" * 100}
NAMES = [f"a{number}" for number in range(12)]
MANY = {**BASE, **{f"adapters/{name}.bin": name.encode() for name in NAMES}}
FEWER = {**BASE, **{f"adapters/{name}.bin": name.encode() for name in ("a1", "a5", "new")}}


@pytest.fixture
def small_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "LEAF", 2)


@pytest.fixture
def many(bundles, tmp_path: Path, small_leaves: None) -> Path:
    """A bundle of twelve adapters whose records are in a tree of files."""
    bundles.create(tmp_path / "b", MANY)
    assert len(record_files(tmp_path / "b")) > 8
    return tmp_path / "b"


def record_files(bundle: Path) -> list[Path]:
    return sorted((bundle / "manifest").glob("*.json"))


def file_of(bundle: Path, name: str) -> Path:
    """Return the file that has the record of an adapter."""
    return next(path for path in record_files(bundle) if f'"name": "{name}"' in path.read_text())


def test_a_bundle_of_many_is_read_as_it_was_written(bundles, many: Path) -> None:
    assert bundles.read(many) == MANY
    assert [adapter.name for adapter in open_bundle(many).manifest.adapters] == sorted(NAMES)


def test_the_bytes_are_the_same_in_whatever_order_adapters_come_and_go(bundles, many: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    for number in range(3):
        grown = tmp_path / str(number)
        bundles.create(grown, BASE)
        for name in chance.sample([*NAMES, "x1", "x2"], 14):
            bundles.add(grown, name)
        bundles.remove(grown, "x2", "x1")
        assert bundles.bytes_of(grown) == bundles.bytes_of(many)


def test_a_bundle_that_shrinks_has_one_manifest_again(bundles, many: Path, tmp_path: Path) -> None:
    bundles.remove(many, *NAMES[2:])
    bundles.create(tmp_path / "few", {**BASE, "adapters/a0.bin": b"a0", "adapters/a1.bin": b"a1"})
    assert bundles.bytes_of(many) == bundles.bytes_of(tmp_path / "few")
    assert not (many / "manifest").exists()


def test_killed_before_any_file_operation_the_bundle_is_old_or_new(bundles, memory_path, kill_at, small_leaves) -> None:
    seen = set()
    number = 0
    through = False
    while not through:
        number += 1
        path = memory_path / str(number)
        bundles.create(path, MANY)
        through = not kill_at(number, path, lambda path=path: bundles.set(path, FEWER))
        found = bundles.read(path)
        assert found in (MANY, FEWER), f"killed at operation {number}"
        seen.add(len(found))
        assert STATE not in bundles.everything(path)
        bundles.create(memory_path / "whole", found, force=True)
        assert bundles.bytes_of(path) == bundles.bytes_of(memory_path / "whole")
        shutil.rmtree(path)
    assert seen == {len(MANY), len(FEWER)}


def test_killed_while_finishing_a_killed_change_it_is_still_finished(kills_while_finishing, small_leaves) -> None:
    assert kills_while_finishing(MANY, FEWER) > 20


@pytest.mark.parametrize("flaw", ["flipped", "missing", "older", "link", "pipe"])
def test_records_that_are_not_those_that_the_bundle_names_are_refused(bundles, many: Path, flaw: str) -> None:
    path = file_of(many, "a3")
    data = path.read_bytes()
    bundles.add(many, "b0") if flaw == "older" else None
    path.unlink()
    if flaw in ("flipped", "older"):
        path.write_bytes(data.replace(b'"rank": 1', b'"rank": 2'))
    elif flaw == "link":
        path.with_suffix(".real").write_bytes(data)
        path.symlink_to(path.with_suffix(".real"))
    elif flaw == "pipe":
        os.mkfifo(path)
    opened = open_bundle(many)
    with pytest.raises(BundleError) as caught:
        opened.record("a3")
    assert caught.value.problems[0].where == str(path)
    with pytest.raises(BundleError):
        verify_hashes(opened)


def test_records_behind_a_linked_directory_are_refused(many: Path, tmp_path: Path) -> None:
    shutil.move(many / "manifest", tmp_path / "elsewhere")
    (many / "manifest").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(many).record("a3")


def rewritten(bundle: Path, name: str, change) -> None:
    """Change the record file of an adapter and let the manifest name it, as whoever makes a bundle can."""
    path = file_of(bundle, name)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    while True:
        digest = file_sha256(path)
        above = path.with_name(f"{path.stem[:-1]}.json") if len(path.stem) > 1 else bundle / MANIFEST
        document = json.loads(above.read_text())
        next(each for each in document["branches"] if each["prefix"] == path.stem).update(sha256=digest)
        above.write_text(json.dumps(document))
        if above.name == MANIFEST:
            return
        path = above


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d["adapters"].clear() or d["artifacts"].clear() or d["methods"].clear(), "where they are named"),
        (lambda d: d["artifacts"][0].update(adapter=None), "no adapter's"),
        (lambda d: d["artifacts"][0].update(path="../x"), "'..' part"),
        (lambda d: d["artifacts"][0].update(path="base.bin"), "more than once"),
        (lambda d: d.update(prefix="0"), "prefix"),
        (lambda d: d.update(schema_version=99), "schema_version"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.update(format="zip"), "no records"),
        (lambda d: d["branches"].append({"prefix": "z", "adapters": 1, "sha256": "0" * 64}), "below"),
    ],
)
def test_records_that_make_no_sense_are_refused(many: Path, change, told: str) -> None:
    rewritten(many, "a3", change)
    opened = open_bundle(many)
    with pytest.raises(BundleError, match=told):
        opened.record("a3")


def test_one_file_of_two_adapters_is_found_when_all_are_looked_at(many: Path) -> None:
    def share(document) -> None:
        next(each for each in document["artifacts"] if each["adapter"] == "a3").update(path="adapters/a7.bin")
        next(each for each in document["methods"] if each["adapter"] == "a3").update(program="adapters/a7.bin")

    rewritten(many, "a3", share)
    with pytest.raises(BundleError, match="several adapters"):
        list(open_bundle(many).manifest.artifacts)


def test_files_of_an_adapter_are_looked_at_when_it_is_asked_for(many: Path) -> None:
    (many / "adapters/a3.bin").write_bytes(b"longer than before")
    opened = open_bundle(many)
    assert opened.record("a4") is not None
    with pytest.raises(BundleError, match="18 bytes, the manifest says 2"):
        opened.record("a3")


def test_what_another_process_adds_does_not_disturb_a_reader(bundles, many: Path) -> None:
    opened = open_bundle(many)
    for number in range(20):
        bundles.add(many, f"b{number}")
    for name in NAMES:
        record = opened.record(name)
        assert record is not None
        assert opened.file(record.artifacts[0]).read_bytes() == name.encode()


def test_a_shipped_journal_deletes_no_records_that_the_bundle_names(many: Path) -> None:
    journal = many / STATE / JOURNAL
    (journal / "files").mkdir(parents=True)
    shutil.copy(many / MANIFEST, journal / MANIFEST)
    (journal / "removed.json").write_text(json.dumps([file_of(many, "a3").relative_to(many).as_posix()]))
    with pytest.raises(BundleError, match="did not write"):
        open_bundle(many)
    assert file_of(many, "a3").exists()


def test_a_shipped_journal_brings_no_records_that_its_manifest_does_not_name(many: Path) -> None:
    journal = many / STATE / JOURNAL
    (journal / "files/manifest").mkdir(parents=True)
    shutil.copy(many / MANIFEST, journal / MANIFEST)
    before = file_of(many, "a3").read_bytes()
    (journal / "files/manifest" / file_of(many, "a3").name).write_bytes(before.replace(b'"rank": 1', b'"rank": 2'))
    with pytest.raises(BundleError, match="did not write"):
        open_bundle(many)
    assert file_of(many, "a3").read_bytes() == before


def test_a_schema_without_files_of_records_is_read_and_the_next_change_writes_them(
    bundles, many: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    bundles.create(old, MANY)
    document = json.loads(dumps(bundles.manifest(BASE)))
    flat = json.loads(dumps_flat(bundles.manifest(MANY)))
    document = {**document, **{name: flat[name] for name in ("artifacts", "adapters", "methods")}, "schema_version": 3}
    del document["branches"], document["base_weights"]
    (old / MANIFEST).write_text(json.dumps(document))
    shutil.rmtree(old / "manifest")
    assert bundles.read(old) == MANY
    bundles.add(old, "new")
    bundles.add(many, "new")
    assert bundles.bytes_of(old) == bundles.bytes_of(many)


def dumps_flat(manifest) -> bytes:
    """Return a manifest with all records in one file, as up to schema 3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "LEAF", 10_000)
        return dumps(manifest)


def test_a_manifest_in_another_form_than_it_would_be_written_in_is_refused(bundles, small_leaves: None) -> None:
    with pytest.raises(BundleError, match="too many adapters"):
        loads(dumps_flat(bundles.manifest(MANY)), MANIFEST)


def test_the_published_schemas_take_the_files_of_a_bundle_of_many(many: Path) -> None:
    records = Draft202012Validator(records_schema())
    assert [list(records.iter_errors(json.loads(path.read_text()))) for path in record_files(many)] == [
        [] for _ in record_files(many)
    ]
    assert list(Draft202012Validator(manifest_schema()).iter_errors(json.loads((many / MANIFEST).read_text()))) == []


def test_opening_and_adding_one_opens_as_many_files_whatever_the_number_of_adapters(bundles, tmp_path, opened) -> None:
    counts = []
    for number in (100, 1000):
        path = tmp_path / str(number)
        bundles.create(path, {**BASE, **{f"adapters/a{index}.bin": b"x" for index in range(number)}})
        read = opened(path, lambda path=path: open_bundle(path).record("a7"))
        added = opened(path, lambda path=path: bundles.add(path, "new"))
        counts.append((len(read), len(added), sum(map(size, added))))
    (few_read, few_added, few_bytes), (many_read, many_added, many_bytes) = counts
    assert many_read <= few_read + 1 <= 3
    assert many_added <= few_added + 2 <= 14
    # Ten times as many adapters are ten times the records: 900 of them would be half a megabyte.
    assert many_bytes < few_bytes + 100_000


def size(path: str) -> int:
    return Path(path).stat().st_size if Path(path).exists() else 0
