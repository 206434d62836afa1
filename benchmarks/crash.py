"""Kill links with SIGKILL at random instants, and check after each that the bundle is the old or the new one.

    python benchmarks/crash.py 1000
    python benchmarks/crash.py 1000 --bundle build/demo/xnnpack --adapter pirate=examples/adapters/pirate

Without --bundle a small bundle of random numbers is made with the test suite's backend. With it, a copy is used, and
the adapters must not be in it yet. A child adds the adapters one by one and removes them again, for ever, until it is
killed. Every state that it passes through is known beforehand, to the byte; after a kill the bundle, opened as any
user would, must be exactly one of them, with no file more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lora_core
from lora_core.adapters.reference import AdapterReference, parse_references
from lora_core.bundle.hashing import file_sha256
from lora_core.bundle.store import open_bundle
from lora_core.hub import PluginHub

State = dict[str, str]


def small_bundle(root: Path) -> tuple[Path, list[AdapterReference], PluginHub]:
    """Make a bundle with the test suite's backend, and three adapters for it."""
    from importlib.metadata import EntryPoint

    import numpy as np
    from safetensors.numpy import save_file

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "pipeline"))
    import fake_backend

    hub = PluginHub([EntryPoint(name="fake", value="fake_backend", group="lora_core")])
    chance = np.random.default_rng(0)
    references = []
    for name in ("one", "two", "three"):
        directory = root / name
        directory.mkdir()
        shapes = {"A": (4, fake_backend.WIDTH), "B": (fake_backend.WIDTH, 4)}
        tensors = {
            f"base_model.model.{module}.lora_{side}.weight": chance.standard_normal(shape).astype(np.float32)
            for module in fake_backend.MODULES
            for side, shape in shapes.items()
        }
        save_file(tensors, directory / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj"]}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        references.append(AdapterReference(name=name, directory=directory))
    bundle = root / "bundle"
    model = fake_backend.FakeModel()
    lora_core.export(model, backend="fake", out=bundle, max_rank=4, targets="all-linear", hub=hub)
    return bundle, references, hub


def steps(bundle: Path, references: list[AdapterReference], hub: PluginHub) -> list[Callable[[], object]]:
    """Return the changes of one turn, after which the bundle is as before."""
    adding = [lambda reference=reference: lora_core.add(bundle, [reference], hub=hub) for reference in references]
    names = [reference.name for reference in references]
    return [*adding, lambda: lora_core.remove(bundle, names, hub=hub)]


def foundations(bundle: Path) -> set[str]:
    return {each.path for each in open_bundle(bundle).manifest.artifacts if each.role == "foundation"}


def state(bundle: Path, known: dict[str, str]) -> State:
    """Return every file with its SHA-256; of those `known` only that inode and times are those of the start."""
    files = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if not path.is_dir()}
    return {name: identity(path) if name in known else file_sha256(path) for name, path in sorted(files.items())}


def identity(path: Path) -> str:
    found = path.stat()
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def run_until_killed(changes: list[Callable[[], object]], delay: float) -> None:
    """Fork a child that makes the changes for ever, and kill it after `delay` seconds of work."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(told, b"x")
            while True:
                for change in changes:
                    change()
        finally:
            os._exit(70)
    os.read(ready, 1)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(ready)
    os.close(told)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise SystemExit("the child failed before it was killed")


def settle(bundle: Path, references: list[AdapterReference], hub: PluginHub) -> None:
    """Bring the bundle back to the state of the start."""
    present = {adapter.name for adapter in open_bundle(bundle).manifest.adapters}
    mine = [reference.name for reference in references if reference.name in present]
    if mine:
        lora_core.remove(bundle, mine, hub=hub)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--adapter", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lora-core-crash-") as temporary:
        root = Path(temporary)
        if arguments.bundle is None:
            bundle, references, hub = small_bundle(root)
        else:
            bundle, references, hub = root / "bundle", list(parse_references(arguments.adapter)), PluginHub()
            shutil.copytree(arguments.bundle, bundle)
            (bundle / "manifest.json").touch()  # the newest file, as after an export: the copy is known to be whole
        print(json.dumps(measure(bundle, references, hub, arguments.kills, random.Random(arguments.seed)), indent=2))


def measure(
    bundle: Path, references: list[AdapterReference], hub: PluginHub, kills: int, chance: random.Random
) -> dict[str, object]:
    """Kill `kills` times; raises SystemExit on the first bundle that is neither old nor new."""
    changes = steps(bundle, references, hub)
    known = {name: identity(bundle / name) for name in foundations(bundle)}
    start = {name: file_sha256(bundle / name) for name in known}
    states, seconds = [state(bundle, known)], []
    for change in changes:
        begun = time.perf_counter()
        change()
        seconds.append(time.perf_counter() - begun)
        states.append(state(bundle, known))
    if states[-1] != states[0]:
        raise SystemExit("removing did not undo adding")
    seen = [0] * len(changes)
    left, unfinished, committed, opening = 0, 0, 0, []
    for number in range(kills):
        run_until_killed(changes, chance.uniform(0, 1.2 * sum(seconds)))
        leftovers = list((bundle / ".lora-core").rglob("*"))
        left = max(left, len(leftovers))
        unfinished += (bundle / ".lora-core").exists()
        committed += (bundle / ".lora-core" / "journal").exists()
        begun = time.perf_counter()
        open_bundle(bundle)
        opening.append(time.perf_counter() - begun)
        found = state(bundle, known)
        if found not in states:
            raise SystemExit(f"kill {number + 1}: the bundle is neither an old nor a new one: {sorted(found)}")
        seen[states.index(found)] += 1
        settle(bundle, references, hub)
        if state(bundle, known) != states[0]:
            raise SystemExit(f"kill {number + 1}: something was left behind")
    if start != {name: file_sha256(bundle / name) for name in known}:
        raise SystemExit("the foundation has changed")
    return {
        "kills": kills,
        "states": seen,
        "killed_during_a_change": unfinished,
        "of_these_after_the_commit": committed,
        "most_leftovers_before_opening": left,
        "leftovers_after_opening": 0,
        "seconds_per_change": round(statistics.mean(seconds), 4),
        "seconds_to_open_after_a_kill": round(statistics.median(opening), 4),
    }


if __name__ == "__main__":
    main()
