"""The executor of this machine: processes of our own, each started anew if it dies.

Not multiprocessing: its forks would keep the lock of a bundle after this process was killed, and its fresh processes
run the caller's script again if that has no `__main__` guard.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import attrs

from lora_core.executor import ATTEMPTS, ExecutorSettings, LostTask, TaskExecutor
from lora_core.processes.starting import python_process

_GONE = (EOFError, BrokenPipeError, pickle.UnpicklingError)


class LocalExecutor(TaskExecutor):
    """Processes on this machine; with one of them, this process itself."""

    def run(
        self, work: Callable[[Any, Any], Any], given: Any, tasks: Sequence[Any], settings: ExecutorSettings
    ) -> Iterator[tuple[int, Any]]:
        """Run the tasks, each on the process that is free first."""
        processes = min(settings.processes or os.cpu_count() or 1, len(tasks))
        if processes <= 1:
            yield from ((index, work(given, task)) for index, task in enumerate(tasks))
            return
        waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[int, Any] | BaseException] = queue.SimpleQueue()
        for index in range(len(tasks)):
            waiting.put(index)
        hands = [_Hand(work=work, given=given, tasks=tasks, waiting=waiting, results=results) for _ in range(processes)]
        for hand in hands:
            hand.thread.start()
        try:
            for _ in tasks:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            for hand in hands:
                hand.stop()
            for _ in hands:
                waiting.put(None)
            for hand in hands:
                hand.thread.join()


@attrs.define(kw_only=True, eq=False)
class _Hand:
    """A thread that keeps one process busy."""

    work: Callable[[Any, Any], Any]
    given: Any
    tasks: Sequence[Any]
    waiting: queue.SimpleQueue[int | None]
    results: queue.SimpleQueue[tuple[int, Any] | BaseException]
    thread: threading.Thread = attrs.field(init=False)
    _process: subprocess.Popen[bytes] | None = None
    _stopped: bool = False
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def stop(self) -> None:
        """End the process, in whatever it is."""
        with self._lock:
            self._stopped = True
            self._end()

    def _serve(self) -> None:
        try:
            while (index := self.waiting.get()) is not None and not self._stopped:
                self.results.put((index, self._tried(index)))
        except BaseException as error:  # noqa: BLE001 raised where results are waited for
            self.results.put(error)

    def _tried(self, index: int) -> Any:
        why = ""
        for _ in range(ATTEMPTS):
            try:
                answer = self._asked(self.tasks[index])
            except _GONE:
                code = self._gone()
                why = f"its process ended with {f'signal {-code}' if code < 0 else f'code {code}'}"
                if self._stopped:
                    break
            else:
                if isinstance(answer, _Raised):
                    raise answer.error
                return answer
        return LostTask(why=f"{why}, {ATTEMPTS} times")

    def _asked(self, task: Any) -> Any:
        with self._lock:
            if self._stopped:
                raise EOFError
            if self._process is None:
                self._process = python_process("lora_core.processes.local_worker")
                _put(self._process, (self.work, self.given))
            process = self._process
        _put(process, task)
        assert process.stdout is not None, "the process was started with pipes"
        return pickle.load(process.stdout)

    def _gone(self) -> int:
        with self._lock:
            return self._end()

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with suppress(OSError):
            process.kill()
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                assert stream is not None
                stream.close()
        return code


@attrs.frozen(kw_only=True)
class _Raised:
    """What a task raised in its process."""

    error: BaseException


def _put(process: subprocess.Popen[bytes], value: Any) -> None:
    assert process.stdin is not None, "the process was started with pipes"
    pickle.dump(value, process.stdin)
    process.stdin.flush()


def answered(work: Callable[[Any, Any], Any], given: Any, task: Any) -> Any:
    """Return what a worker process answers to a task."""
    try:
        return work(given, task)
    except Exception as error:  # noqa: BLE001 raised again where the task came from
        return _Raised(error=error)
