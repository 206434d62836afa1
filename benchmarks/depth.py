"""What a first export costs by depth: CPU seconds and peak memory of the process, at a small width.

    python benchmarks/depth.py [DEPTH ...] [--policy fp32] [--layout split]

A random Llama (hidden 64, FFN 96, vocabulary 128) of each depth (default 2, 8, 32, 128) with a rank-4 adapter on all
linear layers is exported in a process of its own, without a template cache. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core.events import Event, Noted
from lora_core.testing.tiny import TINY_LLAMA, linear_shapes, write_tiny_adapter, write_tiny_checkpoint

_DEPTHS = (2, 8, 32, 128)
_CONTEXT = 32


@attrs.frozen(kw_only=True)
class Cost:
    """Of one export: `note` is what it says of layers that do not follow from others."""

    seconds: float
    megabytes: float
    note: str


def export(depth: int, policy: str, layout: str, directory: Path) -> Cost:
    """Export a model of `depth` layers in this process."""
    import lora_core

    config = {**TINY_LLAMA, "num_hidden_layers": depth}
    model = write_tiny_checkpoint(directory / "model", config=config)
    targets = sorted({name.rpartition(".")[2] for name in linear_shapes(config)})
    adapter = write_tiny_adapter(directory / "adapter", seed=1, targets=targets, config=config)
    notes: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Noted):
            notes.append(event.message)

    start = time.process_time()
    lora_core.export(
        str(model),
        adapters={"some": str(adapter)},
        backend="xnnpack",
        policy=policy,
        out=directory / "bundle",
        options={"layout": layout, "max_context_len": _CONTEXT, "max_seq_len": _CONTEXT},
        cache=None,
        emit=listen,
    )
    return Cost(
        seconds=time.process_time() - start,
        megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        note="; ".join(note for note in notes if note.startswith("Every layer")),
    )


def measured(depth: int, policy: str, layout: str) -> Cost:
    """Export in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", str(depth), "--policy", policy, "--layout", layout]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Cost(**json.loads(result.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or (`--one`) export once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("depths", nargs="*", type=int, default=_DEPTHS)
    parser.add_argument("--policy", default="fp32")
    parser.add_argument("--layout", default="split")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps(attrs.asdict(export(given.one, given.policy, given.layout, Path(directory)))))
        return
    print("| layers | CPU s | peak MB | |\n|---|---|---|---|")
    for depth in given.depths:
        cost = measured(depth, given.policy, given.layout)
        print(f"| {depth} | {cost.seconds:.0f} | {cost.megabytes:.0f} | {cost.note} |", flush=True)


if __name__ == "__main__":
    main()
