"""Ray does what the executor of this machine does, and loses nothing of a worker that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_core_ray.executor import RayExecutor, own_ray

from lora_core.executor import ExecutorSettings, LostTask
from lora_core.hub import PluginHub
from tests.pipeline import fleet_work

TWO = ExecutorSettings(processes=2)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One Ray for all tests, for it takes seconds to start: from a directory where a stranger's modules lie."""
    directory = tmp_path_factory.mktemp("strangers")
    for name in ("lora_core_ray", "safetensors", "tests"):
        (directory / f"{name}.py").write_text(f"open({str(directory / 'ran')!r}, 'w').close()\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        with own_ray(TWO):
            yield directory


def doubled(tmp_path: Path, tasks: list[int]) -> dict[int, object]:
    return {tasks[index]: result for index, result in RayExecutor().run(fleet_work.double, tmp_path, tasks, TWO)}


def test_a_task_whose_process_is_killed_is_done_by_another(tmp_path: Path) -> None:
    assert doubled(tmp_path, [1, 2, 5, 7]) == {1: 2, 2: 4, 5: 10, 7: 14}


def test_a_task_that_kills_every_process_is_lost_alone(tmp_path: Path) -> None:
    results = doubled(tmp_path, [1, 13, 2, 3])
    assert isinstance(results.pop(13), LostTask)
    assert results == {1: 2, 2: 4, 3: 6}


def test_workers_run_nothing_that_lies_where_ray_is_started(tmp_path: Path, folder: Path) -> None:
    assert doubled(tmp_path, [3]) == {3: 6}
    assert not (folder / "ran").exists()


def test_what_a_task_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such task"):
        doubled(tmp_path, [1, 99, 2])


def test_the_plugin_offers_ray_and_imports_it_when_it_is_used() -> None:
    from importlib.metadata import EntryPoint

    hub = PluginHub([EntryPoint(name="ray", value="lora_core_ray.hooks", group="lora_core")])
    assert hub.faults == ()
    executor = hub.executor("ray")
    executor.check(TWO)
    assert executor.shares_files(TWO)
    assert not executor.shares_files(ExecutorSettings(address="head:6379"))
