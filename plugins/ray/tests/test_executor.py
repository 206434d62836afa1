"""Ray does what the executor of this machine does, and loses nothing of a worker that is killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_core_ray.executor import RayExecutor

from lora_core.executor import ExecutorSettings, LostTask
from lora_core.hub import PluginHub
from tests.pipeline import fleet_work

TWO = ExecutorSettings(processes=2)


@pytest.fixture(scope="module", autouse=True)
def started() -> Iterator[None]:
    """One Ray for all tests: it takes seconds to start."""
    import ray

    paths = os.pathsep.join(path for path in sys.path if path)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


def doubled(tmp_path: Path, tasks: list[int]) -> dict[int, object]:
    return {tasks[index]: result for index, result in RayExecutor().run(fleet_work.double, tmp_path, tasks, TWO)}


def test_a_task_whose_process_is_killed_is_done_by_another(tmp_path: Path) -> None:
    assert doubled(tmp_path, [1, 2, 5, 7, 8]) == {1: 2, 2: 4, 5: 10, 7: 14, 8: 16}


def test_a_task_that_kills_every_process_is_lost_alone(tmp_path: Path) -> None:
    results = doubled(tmp_path, [1, 13, 2, 3])
    assert isinstance(results.pop(13), LostTask)
    assert results == {1: 2, 2: 4, 3: 6}


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
