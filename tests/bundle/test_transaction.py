"""A bundle is always the old one or the new one, whatever is killed or fails and whenever."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from lora_core.bundle.lock import locked
from lora_core.bundle.paths import STAGING, STATE
from lora_core.bundle.transaction import change
from lora_core.errors import BundleError, StorageError
from lora_core.events import BundleWritten, Noted, ignore

BASE = {"base.bin": b"base" * 100, "shared/program.bin": b"one"}
OLD = {**BASE, "adapters/old.bin": b"old"}
NEW = {**BASE, "shared/program.bin": b"two!", "adapters/new.bin": b"new", "adapters/more.bin": b"more"}


def test_a_change_adds_replaces_and_deletes(bundles, tmp_path):
    bundles.create(tmp_path / "b", OLD)
    bundles.set(tmp_path / "b", NEW)
    assert bundles.read(tmp_path / "b") == NEW


def test_a_changed_bundle_has_the_files_and_bytes_of_one_made_anew(bundles, tmp_path):
    bundles.create(tmp_path / "changed", OLD)
    bundles.set(tmp_path / "changed", NEW)
    bundles.create(tmp_path / "new", NEW)
    names = bundles.everything(tmp_path / "new")
    assert bundles.everything(tmp_path / "changed") == names
    for name in names:
        if (tmp_path / "new" / name).is_file():
            assert (tmp_path / "changed" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


def test_deleting_the_last_file_of_a_directory_deletes_the_directory(bundles, tmp_path):
    bundles.create(tmp_path / "b", OLD)
    bundles.set(tmp_path / "b", BASE)
    assert bundles.everything(tmp_path / "b") == {"manifest.json", "base.bin", "shared", "shared/program.bin"}


def test_a_block_that_does_not_commit_changes_nothing(bundles, tmp_path):
    bundles.create(tmp_path / "b", OLD)
    with change(tmp_path / "b", ignore) as changing:
        (changing.out / "stray.bin").write_bytes(b"x")
    assert bundles.read(tmp_path / "b") == OLD
    assert STATE not in bundles.everything(tmp_path / "b")


def test_killed_before_any_file_operation_the_bundle_is_old_or_new_and_nothing_is_left(bundles, memory_path, kill_at):
    seen = set()
    number = 1
    while True:
        path = memory_path / str(number)
        bundles.create(path, OLD)
        if not kill_at(number, path, lambda path=path: bundles.set(path, NEW)):
            break
        found = bundles.read(path)
        assert found in (OLD, NEW), f"killed at operation {number}"
        seen.add(len(found))
        assert {name.split("/")[0] for name in bundles.everything(path)} == {
            *(name.split("/")[0] for name in found),
            "manifest.json",
        }
        bundles.set(path, NEW)
        assert bundles.read(path) == NEW
        shutil.rmtree(path)
        number += 1
    assert number > 30
    assert seen == {len(OLD), len(NEW)}


def test_killed_while_finishing_a_killed_change_it_is_still_finished(kills_while_finishing):
    assert kills_while_finishing(OLD, NEW) > 10


def test_sixty_kills_at_random_instants_leave_old_or_new_and_nothing_that_grows(bundles, tmp_path):
    path = tmp_path / "b"
    bundles.create(path, OLD)
    chance = random.Random(7)
    states = []
    for _ in range(60):
        changed, changes = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    for files in (NEW, OLD):
                        bundles.set(path, files)
                        os.write(changes, b"x")
            finally:
                os._exit(70)
        # One change or two first, so that both states occur however slowly a loaded machine makes the next one.
        os.read(changed, 1)
        if chance.random() < 0.5:
            os.read(changed, 1)
        time.sleep(chance.uniform(0.0, 0.06))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(changed)
        os.close(changes)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        left = bundles.everything(path)
        assert len(left) < 25
        found = bundles.read(path)
        assert found in (OLD, NEW)
        states.append(found == OLD)
        assert STATE not in bundles.everything(path)
    assert {True, False} == set(states)


def test_failing_at_any_file_operation_says_so_and_leaves_old_or_new(bundles, memory_path, strike_at, child):
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    number = 1
    outcomes = set()
    unharmed = 0
    while unharmed < 10:  # errors while cleaning up harm nothing, so one that is unharmed is not the end
        path = memory_path / str(number)
        bundles.create(path, OLD)

        def act(number=number, path=path) -> None:
            strike_at(number, path, fail)
            error = bundles.failure(lambda: bundles.set(path, NEW))
            if error is not None:
                assert str(path) in str(error)
                assert "No space left" in str(error)
                raise SystemExit(3)

        ended = child(act)
        outcomes.add(ended)
        assert ended in (0, 3)
        assert bundles.read(path) in ((OLD, NEW) if ended else (NEW,))
        assert STATE not in bundles.everything(path)
        shutil.rmtree(path)
        unharmed = 0 if ended else unharmed + 1
        number += 1
    assert outcomes == {0, 3}
    assert number > 40


def test_a_file_too_large_for_the_system_fails_cleanly(bundles, tmp_path, child, capfd):
    path = tmp_path / "b"
    bundles.create(path, OLD)

    def act() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(StorageError, match="File too large"):
            bundles.set(path, {**NEW, "adapters/big.bin": b"x" * 10_000})

    assert child(act) == 0
    assert bundles.read(path) == OLD
    assert STATE not in bundles.everything(path)


def test_an_error_of_the_block_removes_what_it_staged(bundles, tmp_path):
    bundles.create(tmp_path / "b", OLD)

    def interrupted() -> None:
        with change(tmp_path / "b", ignore) as changing:
            (changing.out / "half.bin").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert bundles.everything(tmp_path / "b").isdisjoint({STATE, f"{STATE}/{STAGING}"})


def test_a_file_that_the_bundle_does_not_list_is_never_overwritten(bundles, tmp_path):
    bundles.create(tmp_path / "b", OLD)
    (tmp_path / "b/adapters/new.bin").write_bytes(b"mine")
    (tmp_path / "b/adapters/more.bin").mkdir()
    with pytest.raises(BundleError) as caught:
        bundles.set(tmp_path / "b", NEW)
    assert len(caught.value.problems) == 2
    assert (tmp_path / "b/adapters/new.bin").read_bytes() == b"mine"
    assert bundles.read(tmp_path / "b") == OLD


def test_eight_processes_that_change_a_bundle_at_once_all_succeed(bundles, tmp_path):
    path = tmp_path / "b"
    bundles.create(path, BASE)

    def add(name: str) -> None:
        with change(path, ignore) as changing:
            listed = [artifact.path for artifact in changing.bundle.manifest.artifacts]
            files = {listing: (path / listing).read_bytes() for listing in listed}
            new = {f"adapters/{name}.bin": name.encode()}
            bundles.write(changing.out, new)
            changing.commit(bundles.manifest({**files, **new}))

    pids = []
    for i in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                for j in range(4):
                    add(f"a{i}-{j}")
                os._exit(0)
            finally:
                os._exit(70)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    expected = {f"adapters/a{i}-{j}.bin": f"a{i}-{j}".encode() for i in range(8) for j in range(4)}
    assert bundles.read(path) == {**BASE, **expected}


def test_a_writer_that_waits_for_long_says_so(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_core.bundle.lock.PATIENCE", 0.05)
    path = tmp_path / "b"
    bundles.create(path, BASE)
    ready, held = os.pipe()
    enough, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with locked(path, ignore):
                os.write(held, b"x")
                os.read(enough, 1)
        finally:
            os._exit(0)
    os.read(ready, 1)
    told = []

    def hear(event: object) -> None:
        told.append(event)
        os.write(release, b"x")

    with change(path, hear):
        pass
    os.waitpid(pid, 0)
    for descriptor in (ready, held, enough, release):
        os.close(descriptor)
    assert [type(event) for event in told] == [Noted]
    assert str(path) in told[0].message


def test_changing_what_is_not_a_bundle_is_refused_and_leaves_no_trace(tmp_path):
    with pytest.raises(BundleError, match="no bundle"), change(tmp_path, ignore):
        pass
    with pytest.raises(BundleError, match="no bundle"), change(tmp_path / "nowhere", ignore):
        pass
    assert list(Path(tmp_path).iterdir()) == []


def test_without_syncfs_every_file_and_directory_is_flushed_by_itself(bundles, tmp_path, monkeypatch):
    flushed = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    bundles.create(tmp_path / "b", OLD)
    monkeypatch.setattr("lora_core.bundle.durable._flush_file_system", lambda path: False)
    monkeypatch.setattr(os, "fsync", fsync)
    bundles.set(tmp_path / "b", NEW)
    assert {"new.bin", "more.bin", "program.bin", "adapters", "shared", "manifest.json", "staging"} <= set(flushed)
    assert flushed.index("staging") < flushed.index(STATE) < flushed.index("b")


def test_what_dying_processes_still_write_is_discarded_with_the_staging_area(bundles, tmp_path):
    path = tmp_path / "b"
    bundles.create(path, OLD)
    work = path / STATE / STAGING / "batches"
    work.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        number = 0
        while number < 100_000:  # ends when the directory is gone
            try:
                (work / str(number)).touch()
            except FileNotFoundError:
                os._exit(0)
            number += 1
        os._exit(70)
    while not (work / "50").exists():
        time.sleep(0.001)
    assert bundles.read(path) == OLD
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert STATE not in bundles.everything(path)


@pytest.mark.parametrize("step", ["flush_directory", "_finish"])
def test_an_interruption_after_the_commit_is_known_to_have_changed_the_bundle(bundles, tmp_path, monkeypatch, step):
    path = tmp_path / "b"
    bundles.create(path, OLD)
    told = []

    def interrupt(*_):
        raise KeyboardInterrupt

    with change(path, told.append) as changing:
        bundles.write(changing.out, {"adapters/new.bin": b"new"})
        with monkeypatch.context() as patch:
            patch.setattr(f"lora_core.bundle.transaction.{step}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                changing.commit(bundles.manifest({**OLD, "adapters/new.bin": b"new"}))
    assert told == [BundleWritten(path=path)]
    assert "adapters/new.bin" in bundles.read(path)


def test_an_interruption_before_the_commit_is_known_to_have_changed_nothing(bundles, tmp_path, monkeypatch):
    path = tmp_path / "b"
    bundles.create(path, OLD)
    told = []

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_core.bundle.transaction.flush_tree", interrupt)
    with change(path, told.append) as changing, pytest.raises(KeyboardInterrupt):
        changing.commit(bundles.manifest(OLD))
    assert told == []
    assert bundles.read(path) == OLD
