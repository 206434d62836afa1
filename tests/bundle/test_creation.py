"""A new bundle appears whole under its name, or not at all."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from lora_core.bundle import exchange
from lora_core.bundle.creation import creation
from lora_core.bundle.store import open_bundle
from lora_core.errors import BundleError
from lora_core.events import ignore

FIRST = {"base.bin": b"first" * 50, "deep/er/program.bin": b"1"}
SECOND = {"base.bin": b"second" * 50, "adapters/a.bin": b"a"}


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_bundle_is_created_with_its_parents(bundles, tmp_path):
    bundles.create(tmp_path / "build/demo/b", FIRST)
    assert bundles.read(tmp_path / "build/demo/b") == FIRST
    assert names(tmp_path / "build/demo") == ["b"]
    assert bundles.everything(tmp_path / "build/demo/b") == {
        "manifest.json", "base.bin", "deep", "deep/er", "deep/er/program.bin",
    }  # fmt: skip


def test_an_empty_directory_may_become_the_bundle(bundles, tmp_path):
    (tmp_path / "b").mkdir()
    bundles.create(tmp_path / "b", FIRST)
    assert bundles.read(tmp_path / "b") == FIRST


def test_a_block_that_fails_leaves_nothing(tmp_path):
    def fail_halfway() -> None:
        with creation(tmp_path / "b", ignore) as made:
            (made.out / "half.bin").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert names(tmp_path) == []


def test_a_bundle_that_exists_is_refused_before_any_work(bundles, tmp_path):
    bundles.create(tmp_path / "b", FIRST)
    with pytest.raises(BundleError, match=r"already a bundle.*--force"), creation(tmp_path / "b", ignore):
        pytest.fail("the block must not run")
    assert bundles.read(tmp_path / "b") == FIRST


def test_force_replaces_a_bundle_whole(bundles, tmp_path):
    bundles.create(tmp_path / "b", FIRST)
    bundles.create(tmp_path / "b", SECOND, force=True)
    assert bundles.read(tmp_path / "b") == SECOND
    assert bundles.everything(tmp_path / "b") == {"manifest.json", "base.bin", "adapters", "adapters/a.bin"}
    assert names(tmp_path) == ["b"]


def test_force_replaces_a_bundle_of_a_newer_schema(bundles, tmp_path):
    bundles.create(tmp_path / "b", FIRST)
    manifest = tmp_path / "b/manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    bundles.create(tmp_path / "b", SECOND, force=True)
    assert bundles.read(tmp_path / "b") == SECOND


@pytest.mark.parametrize("content", ["notes.txt", "manifest.json"])
def test_force_never_deletes_a_directory_that_is_not_a_bundle(bundles, tmp_path, content):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / content).write_text('{"name": "my web app"}')
    with pytest.raises(BundleError, match="not a bundle"):
        bundles.create(tmp_path / "home", FIRST, force=True)
    assert names(tmp_path / "home") == [content]
    assert names(tmp_path) == ["home"]


def test_force_never_deletes_a_file(bundles, tmp_path):
    (tmp_path / "b").write_text("precious")
    with pytest.raises(BundleError, match="not a bundle"):
        bundles.create(tmp_path / "b", FIRST, force=True)
    assert (tmp_path / "b").read_text() == "precious"


def test_a_directory_filled_meanwhile_is_not_overwritten(bundles, tmp_path):
    with creation(tmp_path / "b", ignore, force=True) as made:
        (tmp_path / "b").mkdir()
        (tmp_path / "b/mine.txt").write_text("mine")
        with pytest.raises(BundleError, match="not a bundle"):
            made.commit(bundles.manifest({}))
    assert names(tmp_path / "b") == ["mine.txt"]


def test_killed_before_any_file_operation_there_is_the_old_or_the_new_bundle(bundles, memory_path, kill_at):
    target = memory_path / "work" / "b"
    bundles.create(target, FIRST)
    number = 1
    states = set()
    while kill_at(number, memory_path, lambda: bundles.create(target, SECOND, force=True)):
        found = bundles.read(target)
        assert found in (FIRST, SECOND)
        states.add(len(found.get("base.bin")))
        bundles.create(target, FIRST, force=True)
        assert names(target.parent) == ["b"]
        number += 1
    assert number > 15
    assert len(states) == 2


def test_where_exchanging_is_not_offered_a_killed_replacement_is_put_back(bundles, memory_path, kill_at, monkeypatch):
    monkeypatch.setattr(exchange, "_exchange_at_once", lambda new, old: False)
    target = memory_path / "work" / "b"
    bundles.create(target, FIRST)
    number = 1
    missing = 0
    while kill_at(number, memory_path, lambda: bundles.create(target, SECOND, force=True)):
        missing += not target.exists()
        assert bundles.read(target) in (FIRST, SECOND)
        bundles.create(target, FIRST, force=True)
        assert names(target.parent) == ["b"]
        number += 1
    assert missing >= 1


def test_what_a_living_run_is_writing_is_no_leftover(bundles, tmp_path):
    with creation(tmp_path / "b", ignore) as slow:
        bundles.write(slow.out, SECOND)
        bundles.create(tmp_path / "b", FIRST)
        assert names(slow.out)
    assert bundles.read(tmp_path / "b") == FIRST
    assert names(tmp_path) == ["b"]


def test_of_two_runs_for_one_target_the_second_to_finish_is_refused(bundles, tmp_path):
    with creation(tmp_path / "b", ignore) as slow:
        bundles.create(tmp_path / "b", FIRST)
        bundles.write(slow.out, SECOND)
        with pytest.raises(BundleError, match="already a bundle"):
            slow.commit(bundles.manifest(SECOND))
    assert bundles.read(tmp_path / "b") == FIRST


def test_leftovers_of_a_run_killed_while_writing_are_removed_by_the_next(bundles, tmp_path):
    pid = os.fork()
    if pid == 0:
        try:
            with creation(tmp_path / "b", ignore) as made:
                (made.out / "half.bin").write_bytes(b"x" * 1000)
                (tmp_path / "ready").touch()
                time.sleep(60)
        finally:
            os._exit(70)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert any(name.startswith(".b.tmp-") for name in names(tmp_path))
    bundles.create(tmp_path / "other", FIRST)
    assert any(name.startswith(".b.tmp-") for name in names(tmp_path))
    bundles.create(tmp_path / "b", FIRST)
    assert names(tmp_path) == ["b", "other", "ready"]


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(bundles, memory_path, strike_at, child):
    target = memory_path / "work" / "b"

    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    outcomes = set()
    for number in range(1, 60):
        bundles.create(target, FIRST, force=True)

        def act(number=number) -> None:
            strike_at(number, memory_path, fail)
            error = bundles.failure(lambda: bundles.create(target, SECOND, force=True))
            if error is not None:
                assert "No space left" in str(error)
                assert "Free some space" in str(error)
                raise SystemExit(3)

        outcomes.add(child(act))
        assert bundles.read(target) in (FIRST, SECOND)
        bundles.create(target, FIRST, force=True)
        assert names(target.parent) == ["b"]
    assert outcomes == {0, 3}


def test_a_change_that_waited_while_the_bundle_was_replaced_applies_to_the_new_one(bundles, tmp_path):
    target = tmp_path / "b"
    bundles.create(target, FIRST)
    with creation(target, ignore, force=True) as made:
        bundles.write(made.out, SECOND)
        made.commit(bundles.manifest(SECOND))
    bundles.set(target, {**SECOND, "adapters/b.bin": b"b"})
    assert [adapter.name for adapter in open_bundle(target).manifest.adapters] == ["a", "b"]


def test_two_processes_that_replace_and_change_at_once_never_leave_a_mixture(bundles, tmp_path):
    target = tmp_path / "b"
    bundles.create(target, FIRST)
    pids = []
    for turn in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                for i in range(25):
                    if turn:
                        bundles.create(target, SECOND, force=True)
                    else:
                        bundles.set(target, {"base.bin": b"third", f"adapters/x{i}.bin": b"x"})
                os._exit(0)
            finally:
                os._exit(70)
        pids.append(pid)
    while os.waitpid(pids[0], os.WNOHANG) == (0, 0):
        open_bundle(target)
    _, status = os.waitpid(pids[1], 0)
    assert os.waitstatus_to_exitcode(status) == 0
    bundles.read(target)
    assert names(tmp_path) == ["b"]
