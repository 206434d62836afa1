"""A bundle of a stranger reaches nothing outside of itself: by its journal, by links, by special files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_core.bundle.creation import creation
from lora_core.bundle.lock import locked
from lora_core.bundle.paths import JOURNAL, LOCK, MANIFEST, STATE
from lora_core.bundle.store import open_bundle
from lora_core.errors import BundleError
from lora_core.events import ignore
from lora_core.intake import limits

FILES = {"base.bin": b"base", "adapters/old.bin": b"old"}


@pytest.fixture
def bundle(bundles, tmp_path: Path) -> Path:
    bundles.create(tmp_path / "b", FILES)
    return tmp_path / "b"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A directory of the user with one file."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_bytes(b"mine")
    return tmp_path / "precious"


def untouched(precious: Path) -> bool:
    return [path.name for path in precious.iterdir()] == ["file"] and (precious / "file").read_bytes() == b"mine"


def ship_journal(bundle: Path, removed: object = None, files: dict[str, bytes] | None = None) -> Path:
    """Put a journal into the bundle as a stranger may, with the bundle's own manifest."""
    journal = bundle / STATE / JOURNAL
    (journal / "files").mkdir(parents=True)
    shutil.copy(bundle / MANIFEST, journal / MANIFEST)
    if removed is not None:
        (journal / "removed.json").write_text(json.dumps(removed))
    for name, data in (files or {}).items():
        (journal / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (journal / "files" / name).write_bytes(data)
    return journal


@pytest.mark.parametrize("name", ["../precious/file", "ABSOLUTE", "adapters/../../precious/file"])
def test_a_shipped_journal_deletes_nothing_outside(bundle: Path, precious: Path, name: str) -> None:
    ship_journal(bundle, [str(precious / "file") if name == "ABSOLUTE" else name])
    with pytest.raises(BundleError, match="did not write"):
        open_bundle(bundle)
    assert untouched(precious)


def test_a_shipped_journal_deletes_no_file_that_the_bundle_does_not_list(bundle: Path) -> None:
    (bundle / "notes.txt").write_bytes(b"mine")
    ship_journal(bundle, ["notes.txt"])
    with pytest.raises(BundleError, match=r"notes\.txt"):
        open_bundle(bundle)
    assert (bundle / "notes.txt").exists()


def test_a_shipped_journal_writes_through_no_linked_directory(bundle: Path, precious: Path) -> None:
    shutil.rmtree(bundle / "adapters")
    (bundle / "adapters").symlink_to(precious)
    ship_journal(bundle, files={"adapters/old.bin": b"old"})
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(bundle)
    assert untouched(precious)


def test_a_shipped_journal_replaces_no_file_that_the_bundle_does_not_list(bundle: Path) -> None:
    (bundle / "notes.txt").write_bytes(b"mine")
    ship_journal(bundle, files={"notes.txt": b"theirs"})
    with pytest.raises(BundleError, match=r"notes\.txt"):
        open_bundle(bundle)
    assert (bundle / "notes.txt").read_bytes() == b"mine"


def test_a_shipped_journal_follows_no_link_in_itself(bundle: Path, precious: Path) -> None:
    journal = ship_journal(bundle)
    (journal / "files/adapters").symlink_to(precious)
    with pytest.raises(BundleError, match="neither a file nor a directory"):
        open_bundle(bundle)
    assert untouched(precious)


@pytest.mark.parametrize("broken", [b"", b"{", b'{"a": 1}', b"[1]", b'["\\ud800"]', b"[" * 100_000])
def test_a_broken_journal_is_the_bundles_fault_and_can_be_got_rid_of(bundle: Path, broken: bytes) -> None:
    (ship_journal(bundle) / "removed.json").write_bytes(broken)
    with pytest.raises(BundleError, match=f"Delete .*{STATE}"):
        open_bundle(bundle)
    shutil.rmtree(bundle / STATE)
    open_bundle(bundle)


def test_a_journal_with_a_broken_manifest_is_the_bundles_fault(bundle: Path) -> None:
    (ship_journal(bundle) / MANIFEST).write_bytes(b"{")
    with pytest.raises(BundleError, match="did not write"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [STATE, f"{STATE}/{JOURNAL}", f"{STATE}/staging"])
def test_no_state_is_taken_from_behind_a_link(bundle: Path, precious: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).symlink_to(precious)
    with pytest.raises(BundleError, match="lora-core did not write it"):
        open_bundle(bundle)
    assert untouched(precious)


@pytest.mark.parametrize("exists", [True, False])
def test_no_lock_is_taken_through_a_link(bundle: Path, precious: Path, exists: bool) -> None:
    (bundle / STATE).mkdir()
    (bundle / STATE / LOCK).symlink_to(precious / ("file" if exists else "new"))
    with pytest.raises(BundleError, match="lora-core did not write it"), locked(bundle, ignore):
        raise AssertionError("it is locked")
    assert untouched(precious)


def test_nothing_is_added_or_removed_through_a_linked_directory(bundles, bundle: Path, precious: Path) -> None:
    shutil.move(bundle / "adapters/old.bin", precious / "old.bin")
    (bundle / "adapters").rmdir()
    (bundle / "adapters").symlink_to(precious)
    before = {path.name for path in precious.iterdir()}
    for files in ({**FILES, "adapters/new.bin": b"new"}, {"base.bin": b"base"}):
        with pytest.raises(BundleError, match="is a link"):
            bundles.set(bundle, files)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(bundle)
    assert {path.name for path in precious.iterdir()} == before


def link_to(target: str) -> Callable[[Path], None]:
    return lambda place: place.symlink_to(target)


SPECIAL = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "zeros": link_to("/dev/zero"),
    "randomness": link_to("/dev/urandom"),
    "link": link_to("elsewhere"),
}


@pytest.mark.parametrize("name", [MANIFEST, "base.bin", "adapters/old.bin"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_named_and_not_read(bundle: Path, name: str, kind: str) -> None:
    (bundle / name).rename(bundle / name.replace(name.rpartition("/")[2], "elsewhere"))
    SPECIAL[kind](bundle / name)
    with pytest.raises(BundleError, match=r"is (a|no) \w+") as caught:
        open_bundle(bundle)
    assert caught.value.problems[0].where == str(bundle / name)


def test_a_manifest_beyond_the_limit_is_refused_before_it_is_read(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (bundle / MANIFEST).stat().st_size
    monkeypatch.setattr(limits, "MANIFEST", size - 1)
    with pytest.raises(BundleError, match=f"larger than the {size - 1} bytes"):
        open_bundle(bundle)
    monkeypatch.setenv("LORA_CORE_LIMIT_FACTOR", "2")
    open_bundle(bundle)


@pytest.mark.parametrize("tail", ["mine", "12345678", "abcdefgh"])
def test_a_users_directory_beside_the_target_is_left_alone(bundles, tmp_path: Path, tail: str) -> None:
    own = tmp_path / f".o.tmp-{tail}"
    own.mkdir()
    (own / "file").write_bytes(b"mine")
    bundles.create(tmp_path / "o", FILES)
    assert (own / "file").read_bytes() == b"mine"


def test_a_users_directory_called_replaced_is_left_alone(bundles, tmp_path: Path) -> None:
    bundles.create(tmp_path / "o", FILES)
    own = tmp_path / ".o.replaced"
    own.mkdir()
    (own / "file").write_bytes(b"mine")
    open_bundle(tmp_path / "o")
    shutil.rmtree(tmp_path / "o")
    with creation(tmp_path / "o", ignore):
        pass
    assert (own / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../x", "", "a\nb", "a/b", "\x1b[31m", "a" * 200])
def test_a_manifest_with_a_name_that_is_none_is_refused(bundle: Path, name: str) -> None:
    document = json.loads((bundle / MANIFEST).read_bytes())
    document["adapters"][0]["name"] = name
    for entry in (*document["artifacts"], *document["methods"]):
        entry["adapter"] = name if entry["adapter"] else None
    (bundle / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(BundleError, match="cannot be an adapter's name"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("inserted", "told"),
    [
        ('"detail": NaN', "NaN"),
        ('"detail": {"a": 1e400}', "too large"),
        ('"detail": {"a": "\\ud800"}', "surrogate"),
        ('"detail": ' + '{"a":' * 500 + "1" + "}" * 500, "deeper"),
        ('"detail": ' + "[" * 100_000 + "]" * 100_000, "deeper"),
        ('"detail": {"a": 1, "a": 2}', "more than once"),
        ('"detail": {"a": ' + "1" * 400 + "}", "digits"),
    ],
    ids=["nan", "infinity", "surrogate", "deep", "deeper", "repeated", "digits"],
)
def test_a_manifest_of_unsafe_json_is_refused(bundle: Path, inserted: str, told: str) -> None:
    before, field, after = (bundle / MANIFEST).read_text().rpartition('"detail": {}')
    assert field
    (bundle / MANIFEST).write_text(before + inserted + after)
    with pytest.raises(BundleError, match=told):
        open_bundle(bundle)
