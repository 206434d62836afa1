"""A fleet: packages of all adapters of a source, nothing done twice, nothing lost, whoever is killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lora_core
from lora_core.adapters.reference import AdapterReference
from lora_core.errors import UsageError
from lora_core.events import StageAdvanced
from lora_core.executor import ExecutorSettings, LostTask
from lora_core.fleet import packing_all
from lora_core.processes.local import LocalExecutor
from tests.pipeline import fleet_work

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def source(fake, make_adapter, tmp_path: Path) -> Path:
    for name in NAMES:
        make_adapter(name)
    return tmp_path / "adapters"


@pytest.fixture
def bundle(export):
    return export("bundle", max_rank=4, targets=["q_proj", "v_proj"])


@pytest.fixture
def pack_all(bundle, hub, tmp_path: Path):
    def run(source, out: str = "fleet", **more):
        settings = {"processes": 1, **more}
        return lora_core.pack_all(source, settings.pop("bundle", bundle), out=tmp_path / out, hub=hub, **settings)

    return run


@pytest.fixture
def packages(tmp_path: Path):
    """Return the packages of a fleet by name, with their contents."""

    def read(out: str = "fleet") -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in (tmp_path / out / "packages").iterdir()}

    return read


def numbers(report) -> tuple[int, int, int]:
    return report.packed, report.unchanged, len(report.failed)


def test_every_adapter_gets_the_package_that_pack_writes(source, bundle, pack_all, packages, hub, tmp_path):
    (source / "b/chat_template.jinja").write_text("{{ messages }}")
    assert numbers(pack_all(source)) == (4, 0, 0)
    for name in NAMES:
        reference = AdapterReference(name=name, directory=source / name)
        lora_core.pack(bundle, reference, out=tmp_path / "one.lora", hub=hub)
        assert packages()[name] == (tmp_path / "one.lora").read_bytes()


def test_two_processes_write_what_one_does(source, pack_all, packages, monkeypatch, tmp_path):
    monkeypatch.setattr(packing_all, "BATCH", 1)
    pack_all(source, "one", processes=1)
    pack_all(source, "two", processes=2)
    assert packages("one") == packages("two")
    assert (tmp_path / "one/index.jsonl").read_bytes() == (tmp_path / "two/index.jsonl").read_bytes()


def test_what_is_done_and_unchanged_is_not_looked_at_again(source, pack_all, monkeypatch):
    pack_all(source)
    monkeypatch.setattr(packing_all, "pack_some", lambda work, task: pytest.fail("an adapter is read"))
    assert numbers(pack_all(source)) == (0, 4, 0)


def test_an_adapter_that_changed_is_packed_alone(source, make_adapter, pack_all, packages):
    pack_all(source)
    before = packages()
    shutil.rmtree(source / "c")
    make_adapter("c", seed=9)
    (source / "a/adapter_config.json").touch()  # which changes nothing
    assert numbers(pack_all(source)) == (1, 3, 0)
    assert {name for name in NAMES if packages()[name] != before[name]} == {"c"}


def test_a_package_that_is_gone_or_cut_short_is_written_again(source, pack_all, packages, tmp_path):
    pack_all(source)
    before = packages()
    (tmp_path / "fleet/packages/a.lora").unlink()
    (tmp_path / "fleet/packages/b.lora").write_bytes(b"short")
    assert numbers(pack_all(source)) == (2, 2, 0)
    assert packages() == before


def test_another_template_needs_other_packages(source, pack_all, export):
    pack_all(source)
    other = export("other", max_rank=8, targets=["q_proj", "v_proj"])
    assert numbers(pack_all(source, bundle=other)) == (4, 0, 0)


def test_what_fails_is_in_the_report_and_stops_no_other(source, make_adapter, pack_all, packages, tmp_path):
    pack_all(source)
    (source / "b/adapter_model.safetensors").write_bytes(b"short")
    make_adapter("wide", rank=16)
    report = pack_all(source)
    assert numbers(report) == (0, 3, 2)
    assert [(each.place, "wide" in each.name) for each in report.failed] == [("b", False), ("wide", True)]
    assert "has rank 16" in str(report.failed[1].problems[0])
    assert set(packages()) == {"a", "c", "d"}  # what is of an older b would be taken for it
    written = json.loads((tmp_path / "fleet/report.json").read_text())
    assert [each["place"] for each in written["failed"]] == ["b", "wide"]


def test_packages_of_adapters_that_the_source_lost_are_named_and_kept(source, pack_all, packages):
    pack_all(source)
    shutil.rmtree(source / "d")
    assert pack_all(source).gone == ("d.lora",)
    assert set(packages()) == set(NAMES)


def test_a_killed_run_is_continued(source, pack_all, packages, monkeypatch):
    monkeypatch.setattr(packing_all, "BATCH", 1)
    pack_all(source, "whole")

    def die(event: object) -> None:
        if isinstance(event, StageAdvanced) and event.done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            pack_all(source, emit=die)
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert numbers(pack_all(source)) == (2, 2, 0)
    assert packages() == packages("whole")


def test_half_a_line_of_the_index_and_half_a_package_are_done_again(source, pack_all, packages, tmp_path):
    pack_all(source)
    index = tmp_path / "fleet/index.jsonl"
    index.write_bytes(index.read_bytes()[:-30])
    (tmp_path / "fleet/packages/.d.lora.0123abcd").write_bytes(b"half")
    assert numbers(pack_all(source)) == (1, 3, 0)
    assert set(packages()) == set(NAMES)


def test_a_url_gives_the_packages_of_a_directory(source, pack_all, packages):
    import fsspec

    fsspec.filesystem("memory").put(str(source), "/hub/adapters", recursive=True)
    pack_all(source, "local")
    assert numbers(pack_all("memory://hub/adapters", "remote")) == (4, 0, 0)
    assert packages("remote") == packages("local")


def test_what_is_unchanged_behind_a_url_is_not_fetched_again(source, pack_all, monkeypatch):
    assert numbers(pack_all(f"file://{source}")) == (4, 0, 0)
    monkeypatch.setattr(packing_all, "pack_some", lambda work, task: pytest.fail("an adapter is fetched"))
    assert numbers(pack_all(f"file://{source}")) == (0, 4, 0)


def test_hidden_directories_behind_a_url_are_left_out_as_on_this_machine(source, pack_all, packages):
    shutil.copytree(source / "a", source / ".cache/z")
    pack_all(source, "local")
    pack_all(f"file://{source}", "remote")
    assert set(packages("remote")) == set(packages("local")) == set(NAMES)


def test_a_package_that_became_another_adapters_is_not_taken_for_what_it_was(make_adapter, pack_all, packages, source):
    (source / "team").mkdir()
    inner = source / "team/a"
    make_adapter("team_a", seed=1).rename(inner)
    pack_all(source)
    before = packages()
    inner.rename(source.parent / "aside")
    make_adapter("team_a", seed=2)
    assert numbers(pack_all(source)) == (1, 4, 0)
    shutil.rmtree(source / "team_a")
    (source.parent / "aside").rename(inner)
    assert numbers(pack_all(source)) == (1, 4, 0)
    assert packages() == before


def test_a_directory_of_anything_else_is_left_alone(source, pack_all, tmp_path):
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet/mine").write_text("mine")
    with pytest.raises(UsageError, match="no fleet's"):
        pack_all(source)
    assert [path.name for path in (tmp_path / "fleet").iterdir()] == ["mine"]


def test_the_executor_of_this_machine_has_no_address(source, pack_all):
    with pytest.raises(UsageError, match="no address"):
        pack_all(source, address="cluster:1")


def test_an_unknown_executor_is_refused_with_the_choices(source, pack_all):
    with pytest.raises(UsageError, match="local"):
        pack_all(source, executor="loca")


@pytest.fixture
def doubled(tmp_path):
    """Run tasks in two processes."""

    def run(tasks) -> dict[int, object]:
        results = LocalExecutor().run(fleet_work.double, tmp_path, tasks, ExecutorSettings(processes=2))
        return {tasks[index]: result for index, result in results}

    return run


def test_a_task_whose_process_is_killed_is_done_by_another(doubled):
    assert doubled([1, 2, 5, 7, 8]) == {1: 2, 2: 4, 5: 10, 7: 14, 8: 16}


def test_a_task_that_kills_every_process_is_lost_alone(doubled):
    results = doubled([1, 13, 2, 3])
    assert isinstance(results.pop(13), LostTask)
    assert results == {1: 2, 2: 4, 3: 6}


def test_what_a_task_raises_is_raised(doubled):
    with pytest.raises(ValueError, match="no such task"):
        doubled([1, 99, 2])


CALLER = """
import sys
from pathlib import Path
from lora_core.executor import ExecutorSettings
from lora_core.processes.local import LocalExecutor
from tests.pipeline.fleet_work import hold
list(LocalExecutor().run(hold, Path(sys.argv[1]), [0, 1], ExecutorSettings(processes=2)))
"""


def test_processes_end_at_once_when_their_caller_is_killed(tmp_path):
    path = os.pathsep.join(filter(None, sys.path))
    caller = subprocess.Popen([sys.executable, "-c", CALLER, tmp_path], env={**os.environ, "PYTHONPATH": path})
    try:
        assert within_a_minute(lambda: all((tmp_path / f"{task}.held").exists() for task in (0, 1)))
    finally:
        caller.kill()
        caller.wait()
    for task in (0, 1):
        with (tmp_path / str(task)).open() as file:
            assert within_a_minute(lambda file=file: free(file))


def free(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def within_a_minute(happens) -> bool:
    deadline = time.monotonic() + 60
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
