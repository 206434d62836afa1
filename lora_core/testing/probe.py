"""What a plugin imports and reads, seen from a process of its own.

`main` reads one pickled `Probe` from standard input and writes one pickled `Seen` to standard output.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING, cast

import attrs

if TYPE_CHECKING:
    from lora_core.pipeline.batches import LinkBatch
    from lora_core.pipeline.workers import LinkWork

HEAVY = frozenset(
    {
        "torch",
        "torchao",
        "executorch",
        "transformers",
        "peft",
        "coremltools",
        "onnx",
        "onnxruntime",
        "tensorflow",
        "jax",
    }
)
"""Packages that take seconds to import; a descriptor and a link do without them."""


@attrs.frozen(kw_only=True)
class Seen:
    """What the process had imported of `HEAVY`, after the descriptors and after a link, and which files a link opened.

    `error` is what stopped it.
    """

    described: frozenset[str]
    linked: frozenset[str] = frozenset()
    opened: tuple[str, ...] = ()
    error: str = ""


@attrs.frozen(kw_only=True)
class Probe:
    """Import `modules` (of descriptors and options), then link `batch` by `work` (None: nothing)."""

    modules: tuple[str, ...]
    work: LinkWork | None = None
    batch: LinkBatch | None = None

    def send(self) -> Seen:
        """Run this in a fresh process and return what was seen."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", "from lora_core.testing.probe import main; main()"]
        done = subprocess.run(command, input=pickle.dumps(self), capture_output=True, env=environment, check=False)
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return Seen(described=frozenset(), error=f"the process ended with code {done.returncode}: {''.join(last)}")
        return cast(Seen, pickle.loads(done.stdout))

    def look(self) -> Seen:
        """Do it in this process."""
        for module in self.modules:
            import_module(module)
        described = _heavy()
        opened: list[str] = []
        error = ""
        sys.addaudithook(lambda event, given: opened.append(os.fsdecode(given[0])) if _opens(event, given) else None)
        if self.work is not None and self.batch is not None:
            failed = self.work.link(self.batch).error
            error = "" if failed is None else f"{type(failed).__name__}: {failed}"
        return Seen(described=described, linked=_heavy(), opened=tuple(opened), error=error)


def _heavy() -> frozenset[str]:
    return HEAVY & {name.partition(".")[0] for name in sys.modules}


def _opens(event: str, given: tuple[object, ...]) -> bool:
    return event == "open" and isinstance(given[0], str | bytes)


def main() -> None:
    """Do what comes in."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints must not come between
    probe: Probe = pickle.load(sys.stdin.buffer)
    pickle.dump(probe.look(), results)
    results.flush()
