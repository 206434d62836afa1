"""Tasks on Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

from lora_core.errors import UnsupportedError
from lora_core.executor import ATTEMPTS, ExecutorSettings, LostTask, TaskExecutor

AHEAD = 2
"""Tasks that are handed to each process at a time, so that none waits for the next."""


class RayExecutor(TaskExecutor):
    """Ray's processes: its own on this machine (`ray.init()`), or those of the cluster at an address.

    What every task is given is put into Ray's store once. A caller that has called `ray.init` before is not disturbed;
    one whose Ray has other machines says so with an address, else what they write stays there.
    """

    def check(self, settings: ExecutorSettings) -> None:  # noqa: ARG002 - any settings make sense
        """Raise `UnsupportedError` where Ray is not installed."""
        try:
            import ray  # noqa: F401 heavy, and only wanted here
        except ImportError as error:
            raise UnsupportedError(f"Ray cannot be imported: {error}", remedy="pip install lora-core-ray.") from error

    def shares_files(self, settings: ExecutorSettings) -> bool:
        """Workers of a cluster are on other machines."""
        return settings.address is None

    def run(
        self, work: Callable[[Any, Any], Any], given: Any, tasks: Sequence[Any], settings: ExecutorSettings
    ) -> Iterator[tuple[int, Any]]:
        """Run the tasks; those that wait are not handed out yet, so that memory does not grow with their number."""
        import ray

        if not tasks:
            return
        with own_ray(settings):
            remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_answered)
            shared = [ray.put(given)]  # in a list: fetched by a process once, not for each task
            processes = settings.processes or int(ray.cluster_resources().get("CPU", 1))
            waiting = iter(range(len(tasks)))
            running: dict[Any, int] = {}
            try:
                for _ in tasks:
                    while len(running) < processes * AHEAD and (index := next(waiting, None)) is not None:
                        running[remote.remote(work, shared, tasks[index])] = index
                    (done,), _ = ray.wait(list(running), num_returns=1)
                    yield running.pop(done), _result(done)
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)


def _answered(work: Callable[[Any, Any], Any], given: Sequence[Any], task: Any) -> Any:
    return work(_fetched(given[0]), task)


@lru_cache(maxsize=1)
def _fetched(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def _result(reference: Any) -> Any:
    """Return what came of a task; raises what the task raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        return LostTask(why=f"{str(error).splitlines()[0]}, {ATTEMPTS} times")


@contextmanager
def own_ray(settings: ExecutorSettings) -> Iterator[None]:
    """Have Ray for a block: the caller's, else one that is started for it."""
    import ray

    if ray.is_initialized():
        yield
        return
    with nullcontext() if settings.address else _import_path():
        ray.init(
            address=settings.address or "local",
            num_cpus=settings.processes if settings.address is None else None,
            include_dashboard=False if settings.address is None else None,
            log_to_driver=False,
            logging_level="warning",
            job_config=None if (settings.address or "").startswith("ray://") else _job(),
        )
    try:
        yield
    finally:
        ray.shutdown()


def _job() -> Any:
    """Return a job whose workers do not import from the directory that this process is in.

    Ray puts that directory first on their path, and who packs adapters stands among files of strangers. It leaves it
    out where a job brings a directory of its own. (Of Ray's client, which has no such path, a job is the server's.)
    """
    from ray.job_config import JobConfig

    job = JobConfig()
    job._runtime_env_has_working_dir = lambda: True  # there is no setting for it
    return job


@contextmanager
def _import_path() -> Iterator[None]:
    """Have what is started import what this process imports, wherever that was put.

    By the environment that a Ray of one's own inherits, not by a `runtime_env`: with one, the workers that Ray has
    begun to start do not fit, and others are started after them.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
