"""What `add`, `remove` and `inspect` cost in a bundle of many adapters, for a tiny model of as many layers as wanted.

    python benchmarks/scaling.py qnn_sim 500 1000 2000
    python benchmarks/scaling.py xnnpack 1000 2000
    python benchmarks/scaling.py coreml 100 300 --layers 30

Exports once, grows the bundle to each of the numbers, and prints a row for each: CPU seconds of adding what was
missing, then of adding one, removing it and inspecting the bundle, all in this process, whose imports are done by then.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lora_core
from lora_core.hub import PluginHub
from lora_core.testing.tiny import TINY_LLAMA, write_tiny_adapter, write_tiny_checkpoint

OPTIONS = {
    "qnn_sim": {"context_len": 16, "input_len": 8},
    "xnnpack": {"max_context_len": 16, "max_seq_len": 8},
    "coreml": {"max_context_len": 16, "input_len": 8},
    "onnx": {},
}


def cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def grow(backend: str, sizes: Sequence[int], layers: int, root: Path) -> None:
    config = {**TINY_LLAMA, "num_hidden_layers": layers}
    model = write_tiny_checkpoint(root / "model", config=config)
    sources = {f"a{n}": write_tiny_adapter(root / f"a{n}", seed=n, config=config) for n in range(max(sizes) + 1)}
    hub, bundle, there = PluginHub(), root / "bundle", 0
    exported = cpu(
        lambda: lora_core.export(
            model,
            adapters={"first": write_tiny_adapter(root / "first", seed=10**6, config=config)},
            backend=backend,
            out=bundle,
            options=OPTIONS[backend],
            cache=None,
            hub=hub,
        )
    )
    print(f"{backend}, {layers} layers: exported in {exported:.1f} CPU s", flush=True)
    print(
        "| adapters | added, CPU s | add one | remove one | inspect | peak, MB |\n|---|---|---|---|---|---|", flush=True
    )
    for size in sizes:
        new = {name: sources[name] for name in list(sources)[there:size]}
        added = cpu(lambda new=new: lora_core.add(bundle, new, hub=hub))
        there = size
        one = {f"a{size}": sources[f"a{size}"]}
        times = (
            cpu(lambda one=one: lora_core.add(bundle, one, hub=hub)),
            cpu(lambda one=one: lora_core.remove(bundle, list(one), hub=hub)),
            cpu(lambda: inspected(bundle, hub)),
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        figures = " | ".join(f"{each:.2f}" for each in times)
        print(f"| {size:,} | {added:.1f} ({len(new):,}) | {figures} | {peak:.0f} |", flush=True)


def inspected(bundle: Path, hub: PluginHub) -> None:
    report = lora_core.inspect(bundle, hub=hub)
    if not report.passed:
        raise SystemExit(str(report.problems[:3]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", choices=OPTIONS)
    parser.add_argument("adapters", type=int, nargs="+")
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        grow(arguments.backend, sorted(arguments.adapters), arguments.layers, Path(scratch))


if __name__ == "__main__":
    main()
