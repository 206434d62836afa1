"""Opening a bundle checks it, and needs no permission to write."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from lora_core.bundle.durable import write_whole
from lora_core.bundle.paths import JOURNAL, STAGING, STATE
from lora_core.bundle.store import open_bundle, verify_hashes
from lora_core.errors import BundleError, StorageError

FILES = {"base.bin": b"base" * 100, "adapters/a.bin": b"aaaa", "adapters/b.bin": b"bbbb"}


def test_an_opened_bundle_has_its_path_and_manifest(bundles, tmp_path):
    made = bundles.create(tmp_path / "b", FILES)
    opened = open_bundle(tmp_path / "b")
    assert opened.path == tmp_path / "b"
    assert opened.manifest == made.manifest or set(opened.manifest.artifacts) == set(made.manifest.artifacts)
    assert opened.file("base.bin").read_bytes() == FILES["base.bin"]


@pytest.mark.parametrize("what", ["nowhere", "file", "empty"])
def test_what_is_no_bundle_is_refused(tmp_path, what):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="no bundle"):
        open_bundle(tmp_path / what)


def test_missing_and_truncated_files_are_named_together(bundles, tmp_path):
    bundles.create(tmp_path / "b", FILES)
    (tmp_path / "b/adapters/a.bin").unlink()
    (tmp_path / "b/base.bin").write_bytes(b"short")
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path / "b")
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 2
    assert any("'adapters/a.bin' is missing" in line for line in told)
    assert any("'base.bin' has 5 bytes, the manifest says 400" in line for line in told)


def test_a_flipped_bit_is_found_by_hash(bundles, tmp_path):
    bundle = bundles.create(tmp_path / "b", FILES)
    assert verify_hashes(bundle) == []
    (tmp_path / "b/adapters/a.bin").write_bytes(b"aaa`")
    assert [problem.where for problem in verify_hashes(bundle)] == [str(tmp_path / "b/adapters/a.bin")]


def test_hashes_and_sizes_are_reported_once_each(bundles, tmp_path):
    bundle = bundles.create(tmp_path / "b", FILES)
    (tmp_path / "b/adapters/a.bin").write_bytes(b"a")
    (tmp_path / "b/adapters/b.bin").write_bytes(b"bbbc")
    (tmp_path / "b/base.bin").unlink()
    assert len(verify_hashes(bundle)) == 3


def test_reading_discards_what_a_killed_writer_staged(bundles, tmp_path):
    bundles.create(tmp_path / "b", FILES)
    stale = tmp_path / "b" / STATE / STAGING / "files"
    stale.mkdir(parents=True)
    (stale / "half.bin").write_bytes(b"x")
    assert bundles.read(tmp_path / "b") == FILES
    assert not (tmp_path / "b" / STATE).exists()


@pytest.fixture
def public(bundles):
    """A bundle below a directory that any user can reach."""
    root = Path(tempfile.mkdtemp(prefix="lora-core-test-"))
    root.chmod(0o755)
    bundles.create(root / "b", FILES)
    yield root / "b"
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(root)


def without_write_permission(path: Path) -> None:
    """Take the right to write from the bundle, and from ourselves the right to write everywhere."""
    for found in [path, *path.rglob("*")]:
        found.chmod(0o555 if found.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_a_bundle_that_cannot_be_written_is_still_read(bundles, public, child):
    def act() -> None:
        without_write_permission(public)
        assert bundles.read(public) == FILES
        with pytest.raises(StorageError, match="Permission denied"):
            bundles.set(public, {})

    assert child(act) == 0


def test_a_stale_staging_area_that_cannot_be_removed_does_not_disturb_reading(bundles, public, child):
    (public / STATE / STAGING).mkdir(parents=True)

    def act() -> None:
        without_write_permission(public)
        assert bundles.read(public) == FILES

    assert child(act) == 0


def test_an_interrupted_change_that_cannot_be_finished_here_is_explained(bundles, public, child, monkeypatch):
    monkeypatch.setattr("lora_core.bundle.store._READ_ONLY_PATIENCE", 0.05)
    (public / STATE / JOURNAL).mkdir(parents=True)

    def act() -> None:
        without_write_permission(public)
        with pytest.raises(StorageError, match=r"interrupted change.*Open the bundle once where it can be written"):
            open_bundle(public)

    assert child(act) == 0
    assert bundles.read(public) == FILES


def test_a_file_has_no_name_before_it_is_whole(tmp_path):
    seen = []

    def parts():
        yield b"half"
        seen.append([path.name for path in tmp_path.iterdir()])
        yield b" and half"

    write_whole(tmp_path / "a.lora", parts())
    assert len(seen[0]) == (0 if hasattr(os, "O_TMPFILE") else 1), "where a file cannot lack one, it has another"
    assert "a.lora" not in seen[0]
    assert (tmp_path / "a.lora").read_bytes() == b"half and half"
