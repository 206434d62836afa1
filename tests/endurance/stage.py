"""What commands work on when they are struck: a model, adapters and a bundle, copied for each strike."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.cli.shell import Shell
from tests.endurance.running import whole
from tests.hub.distributions import install_example

_XNNPACK = ("--backend", "xnnpack", "--max-context-len", "16", "--max-seq-len", "8")
_COREML = ("--backend", "coreml", "--max-context-len", "16", "--input-len", "4")
BACKENDS: Mapping[str, Sequence[str]] = {
    "plain": ("--backend", "plain"),
    "qnn_sim": ("--backend", "qnn_sim", "--context-len", "16", "--input-len", "8"),
    "xnnpack": _XNNPACK,
    "xnnpack-multimethod": (*_XNNPACK, "--layout", "multimethod"),
    "coreml": _COREML,
    "coreml-inputs": (*_COREML, "--lora", "inputs"),
    "onnx": ("--backend", "onnx", "--max-context-len", "16"),
}
"""Words of an export by the name of what it makes."""
CACHED = ("xnnpack", "xnnpack-multimethod", "coreml", "coreml-inputs")
"""Those whose exports keep lowered programs in the user's cache."""
State = dict[str, str]


@attrs.frozen(kw_only=True)
class Stage:
    """A directory with a model, adapters `alice` and `bob` and a bundle that has `alice`; commands work on copies."""

    root: Path
    backend: str

    @classmethod
    def of(cls, root: Path, backend: str) -> Stage:
        """Make one in `root`."""
        stage = cls(root=root, backend=backend)
        work = root / "pristine"
        write_tiny_checkpoint(work / "model")
        write_tiny_adapter(work / "adapters" / "alice", seed=1)
        write_tiny_adapter(work / "adapters" / "bob", seed=2)
        if backend == "plain":
            install_example(root / "site")
        done = whole(stage.shell(work), stage.words("export"))
        if done.code != 0:
            raise SystemExit(f"the export failed: {done.err}")
        (work / "out").rename(work / "bundle")
        return stage

    @property
    def cached(self) -> bool:
        """Whether an export keeps something in the user's cache."""
        return self.backend in CACHED

    def shell(self, directory: Path) -> Shell:
        """Return a shell in `directory`, in which the backend is installed."""
        site = self.root / "site"
        return Shell(directory=directory, sites=(site,) if site.exists() else ())

    def words(self, command: str) -> Sequence[str]:
        """Return the words of one of the commands that are struck."""
        return {
            "export": (
                *("export", *BACKENDS[self.backend], "--model", "model"),
                *("--adapter", "alice=adapters/alice", "-o", "out"),
            ),
            "add": ("add", "bundle", "--adapter", "bob=adapters/bob"),
            "remove": ("remove", "bundle", "alice"),
            # From its directory, because not every backend gives back what it has stored.
            "pack": ("pack", "bundle", "bob=adapters/bob", "-o", "bob.lora"),
            "bench": (
                *("bench", "bundle", "--adapter", "alice", "--prompt-tokens", "2", "--decode-tokens", "1"),
                *("--rounds", "1", "--packed-cache", "packed", "--json"),
            ),
        }[command]


@contextmanager
def copied(stage: Stage) -> Iterator[Path]:
    """Hand out a copy of a stage's directory, in a directory of its own."""
    root = Path(tempfile.mkdtemp(dir=stage.root))
    try:
        yield Path(shutil.copytree(stage.root / "pristine", root / "work"))
    finally:
        shutil.rmtree(root)


def state_of(directory: Path) -> State:
    """Return the hash of every file and "" for every directory, but of packed weights, whose proof has a time."""
    state = {}
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if name.partition("/")[0] != "packed":
            state[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return state


def unlike(state: State, expected: State) -> list[str]:
    """Return what there is in one state only, or otherwise in the other."""
    return sorted(name for name in {*state, *expected} if state.get(name) != expected.get(name))
