"""With an address, a Ray that runs already does the work, and goes on running."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lora_core_ray.executor import RayExecutor

from lora_core.executor import ExecutorSettings
from tests.pipeline import fleet_work


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one machine, this one, started as an operator starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    command += [
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--object-store-memory=100000000",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # A short path: Ray's sockets are below it.
    with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as scratch:
        words = [*command, f"--temp-dir={scratch}"]
        head = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert head.stdout is not None
            assert any("runtime started" in line for line in head.stdout)
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.communicate()


def test_tasks_are_done_by_the_cluster_which_stays(address: str, tmp_path: Path) -> None:
    settings = ExecutorSettings(address=address)
    for tasks in ([1, 2, 5], [7, 1]):  # 5 kills the process that does it first
        done = dict(RayExecutor().run(fleet_work.double, tmp_path, tasks, settings))
        assert {tasks[index]: result for index, result in done.items()} == {task: 2 * task for task in tasks}
