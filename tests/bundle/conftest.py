"""Small bundles, and children that die or fail at a chosen file operation."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from lora_core.bundle.bundle import Artifact, Bundle, BundledAdapter, Manifest, Method
from lora_core.bundle.creation import creation
from lora_core.bundle.paths import JOURNAL, STATE
from lora_core.bundle.store import open_bundle, verify_hashes
from lora_core.bundle.transaction import change
from lora_core.errors import StorageError
from lora_core.events import ignore
from lora_core.layers import LayerInfo, ModelSummary

LAYER = LayerInfo(name="layers.0.q_proj", kind="linear", in_features=4, out_features=8)
BASE = ModelSummary(name="tiny", family="llama", layers=(LAYER,), module_names=("layers.0", "layers.0.q_proj"))


class Bundles:
    """Makes, changes and looks at bundles whose adapters are files of text."""

    def manifest(self, files: Mapping[str, bytes]) -> Manifest:
        """Describe `files`; `adapters/NAME.bin` are adapters, the rest the base's."""
        names = [path[len("adapters/") : -len(".bin")] for path in files if path.startswith("adapters/")]
        artifacts = tuple(
            Artifact(
                path=path,
                role="program",
                sha256=hashlib.sha256(data).hexdigest(),
                size=len(data),
                adapter=path[len("adapters/") : -len(".bin")] if path.startswith("adapters/") else None,
            )
            for path, data in files.items()
        )
        adapters = tuple(
            BundledAdapter(name=name, digest="d" * 64, foundation="f" * 64, rank=1, modules=1) for name in names
        )
        methods = tuple(Method(name=name, program=f"adapters/{name}.bin", adapter=name) for name in names)
        return Manifest(
            backend="text",
            base=BASE,
            policy={"name": "fp32"},
            foundation="f" * 64,
            plans=(),
            options={},
            versions={},
            artifacts=artifacts,
            adapters=adapters,
            methods=methods,
        )

    def create(self, path: Path, files: Mapping[str, bytes], *, force: bool = False) -> Bundle:
        """Create a bundle of `files`."""
        with creation(path, ignore, force=force) as made:
            self.write(made.out, files)
            return made.commit(self.manifest(files))

    def set(self, path: Path, files: Mapping[str, bytes]) -> None:
        """Change the bundle at `path` into one of `files`."""
        with change(path, ignore) as changing:
            self.write(changing.out, {name: data for name, data in files.items() if not self.has(path, name, data)})
            changing.commit(self.manifest(files))

    def add(self, path: Path, name: str) -> Bundle:
        """Add one adapter as the pipeline does: what is known of the others is left alone."""
        files = {f"adapters/{name}.bin": name.encode()}
        with change(path, ignore) as changing:
            self.write(changing.out, files)
            return changing.commit(changing.bundle.manifest.with_records([*self.manifest(files).records.all]))

    @staticmethod
    def remove(path: Path, *names: str) -> Bundle:
        """Remove adapters as the pipeline does."""
        with change(path, ignore) as changing:
            return changing.commit(changing.bundle.manifest.with_records(dropped=names))

    @staticmethod
    def bytes_of(path: Path) -> dict[str, bytes]:
        """Return the bytes of every file below `path`."""
        return {found.relative_to(path).as_posix(): found.read_bytes() for found in path.rglob("*") if found.is_file()}

    @staticmethod
    def has(path: Path, name: str, data: bytes) -> bool:
        """Say whether the bundle has a file of these bytes."""
        return (path / name).is_file() and (path / name).read_bytes() == data

    @staticmethod
    def write(out: Path, files: Mapping[str, bytes]) -> None:
        """Write `files` below `out`."""
        for name, data in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)

    @staticmethod
    def read(path: Path) -> dict[str, bytes]:
        """Open the bundle as a user would, check every hash, and return the files that it lists."""
        bundle = open_bundle(path)
        assert verify_hashes(bundle) == []
        return {artifact.path: bundle.file(artifact).read_bytes() for artifact in bundle.manifest.artifacts}

    @staticmethod
    def failure(act: Callable[[], object]) -> StorageError | None:
        """Return the storage error that `act` raises, if it does."""
        try:
            act()
        except StorageError as error:
            return error
        return None

    @staticmethod
    def everything(path: Path) -> set[str]:
        """Return all names below `path`, directories too."""
        return {found.relative_to(path).as_posix() for found in path.rglob("*")}


@pytest.fixture
def bundles() -> Bundles:
    return Bundles()


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory in memory where there is one: for tests that change hundreds of bundles and test no disk."""
    parent = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=parent if os.access(parent, os.W_OK) else None) as directory:
        yield Path(directory)


# Interpreter events that come before a change of the file system, so a child can stop between any two of them.
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "fcntl.flock"}


def run_child(act: Callable[[], None]) -> int:
    """Run `act` in a forked child and return how it ended: 0, an exit code, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            act()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:  # noqa: BLE001 the child must never return into the test runner
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def at_operation(number: int, below: Path, strike: Callable[[], None]) -> None:
    """From now on in this process, call `strike` just before file operation `number` on something below `below`."""
    seen = 0

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in OPERATIONS:
            return
        if event != "fcntl.flock" and not any(str(below) in os.fsdecode(a) for a in args if isinstance(a, str | bytes)):
            return
        seen += 1
        if seen == number:
            strike()

    sys.addaudithook(watch)


def dies_at(number: int, below: Path, act: Callable[[], None]) -> bool:
    """Run `act` in a child that SIGKILLs itself at a file operation; False if `act` was through before it."""

    def doomed() -> None:
        at_operation(number, below, lambda: os.kill(os.getpid(), signal.SIGKILL))
        act()

    ended = run_child(doomed)
    assert ended in (0, -signal.SIGKILL)
    return ended != 0


_WATCHED: list[list[str]] = []


def _watch_opening(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and _WATCHED and isinstance(args[0], str | bytes):
        _WATCHED[-1].append(os.fsdecode(args[0]))


@pytest.fixture
def opened() -> Callable[[Path, Callable[[], object]], list[str]]:
    """Return a function that says which files below a directory something opens, to read or to write them."""
    if not _WATCHED:
        sys.addaudithook(_watch_opening)  # one for all tests, as none can be taken off again

    def watch(below: Path, act: Callable[[], object]) -> list[str]:
        _WATCHED.append([])
        act()
        found = [path for path in _WATCHED.pop() if Path(path).is_relative_to(below)]
        _WATCHED.append([])
        return [path for path in found if not Path(path).is_dir()]

    return watch


@pytest.fixture
def child() -> Callable[[Callable[[], None]], int]:
    return run_child


@pytest.fixture
def kill_at() -> Callable[[int, Path, Callable[[], None]], bool]:
    return dies_at


@pytest.fixture
def strike_at() -> Callable[[int, Path, Callable[[], None]], None]:
    return at_operation


@pytest.fixture
def kills_while_finishing(
    bundles: Bundles, memory_path: Path
) -> Callable[[Mapping[str, bytes], Mapping[str, bytes]], int]:
    """Return a function that kills a change of some files to others after its commit, then whoever finishes it before
    each file operation; the next one must find the new files. It returns how many were killed.
    """

    def run(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> int:
        committed = memory_path / "committed"
        number = 20
        while not (committed / STATE / JOURNAL).exists():
            shutil.rmtree(committed, ignore_errors=True)
            bundles.create(committed, old)
            number += 1
            assert dies_at(number, committed, lambda: bundles.set(committed, new))
        number, survived = 0, False
        while not survived:
            number += 1
            path = memory_path / str(number)
            shutil.copytree(committed, path)
            survived = not dies_at(number, path, lambda path=path: bundles.read(path))
            assert bundles.read(path) == new
            shutil.rmtree(path)
        return number - 1

    return run
