"""Memory of a base and one adapter in one process, beside the table that ExecuTorch's LoRA demo publishes.

    python benchmarks/memory.py [--layers 28] [--output build/benchmarks/memory] [--policy fp32] [--layout split]

The model has exactly Qwen3-0.6B's shape with random weights, the adapter rank 16 on all linear layers, the context is
2,048 tokens. Every configuration is measured in a process of its own, which loads the base, reads a prompt with it,
loads the adapter, and reads the prompt with that; then so does a second adapter, which shows what every further one
takes. A bundle that is there already is used again, so a run that was stopped goes on where it was. Prints a Markdown
table and writes results.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import qwen3_shape
from measured import run_lora_core

CONTEXT = 2048
FURTHER = "more"
PROMPT, DECODE = 64, 8
LAYOUTS = ("split", "multimethod")
POLICIES: dict[str, tuple[str, ...]] = {
    "fp32": ("--policy", "fp32"),
    "8da4w": ("--policy", "8da4w", "--group-size", "32"),
    "8da4w + embedding 8,0": ("--policy", "8da4w", "--group-size", "32", "--embedding", "8,0"),
}
# meta-pytorch/executorch-examples, program-data-separation/cpp/lora_example/README.md: resident memory of the first
# model, of both, and of both without sharing, in GB.
PUBLISHED = {"fp32": (4.4, 5.77, 8.0), "8da4w": (1.9, 3.1, 3.4), "8da4w + embedding 8,0": (1.5, 2.1, 2.5)}


@attrs.frozen(kw_only=True)
class Row:
    """One process: memory (bytes) before anything was loaded, with the base, with base and adapter, and with a further
    adapter, each after all have answered; and the most that was resident until base and adapter had.
    """

    policy: str
    layout: str
    sharing: str
    before: dict[str, int]
    base: dict[str, int]
    both: dict[str, int]
    further: dict[str, int]
    peak: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with what either adapter added."""
        return attrs.asdict(self) | {"added": _more(self.base, self.both), "then": _more(self.both, self.further)}


def _more(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {kind: after[kind] - before[kind] for kind in after}


SHARINGS: dict[str, tuple[str, ...]] = {
    "on": (),
    "on, packed file": ("--packed-cache",),
    "off": ("--weight-cache", "off"),
}


def command(*words: object) -> list[str]:
    return [str(word) for word in (Path(sys.executable).with_name("lora-core"), *words)]


def export(
    model: Path, adapter: Path, bundle: Path, policy: str, layout: str, longest_call: int
) -> dict[str, float] | None:
    """Export, unless the bundle is there (it appears at once and whole); return seconds and peak memory."""
    if (bundle / "manifest.json").is_file():
        return None
    lengths = ("--max-context-len", str(CONTEXT), "--max-seq-len", longest_call)
    what: tuple[str | Path, ...] = (
        "--model",
        model,
        "--adapter",
        f"math={adapter}",
        "--layout",
        layout,
        *POLICIES[policy],
        *lengths,
    )
    return attrs.asdict(run_lora_core("export", "--backend", "xnnpack", *what, "--no-cache", "-o", bundle))


def add_further(bundle: Path, adapter: Path) -> None:
    """Add the further adapter, unless it is there."""
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    if FURTHER not in [each["name"] for each in manifest["adapters"]]:
        subprocess.run(command("add", bundle, "--adapter", f"{FURTHER}={adapter}"), check=True)


def measure(bundle: Path, *, weight_cache: bool, packed: Path | None) -> dict[str, Any]:
    """Load and run the base and then the adapter in this process."""
    import lora_core
    from lora_core.runtime.memory import measure as memory_now

    def now() -> dict[str, int]:
        memory = attrs.asdict(memory_now())
        return {kind: memory[kind] for kind in ("resident", "anonymous", "file_backed", "proportional")}

    tokens = [int(token) for token in np.random.default_rng(0).integers(0, 151936, PROMPT + DECODE)]
    with lora_core.open(bundle, options={"weight_cache": weight_cache, "packed_cache": packed}) as session:
        told: dict[str, Any] = {"before": now()}
        for stage, adapter in (("base", None), ("both", "math"), ("further", FURTHER)):
            session.load(adapter)
            logits = session.step(adapter, tokens[:PROMPT], 0)
            for position in range(PROMPT, len(tokens)):
                session.step(adapter, tokens[position : position + 1], position)
            if not np.isfinite(logits).all():
                raise RuntimeError(f"{bundle} gives no numbers with adapter {adapter}")
            told[stage] = now()
            if stage == "both":
                told["peak"] = _peak()
        told["facts"] = dict(session.facts)
    return told


def _peak() -> int:
    # Not getrusage: a child starts with the peak of the process that it was forked from.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def measured(bundle: Path, policy: str, layout: str, sharing: str, packed: Path) -> Row:
    """Measure one configuration in a process of its own; with a packed file, in a second one that finds it made."""
    told: dict[str, Any] = {}
    for _ in range(2 if "packed" in sharing else 1):
        words = [str(packed) if word == "--packed-cache" else word for word in SHARINGS[sharing]]
        words = ["--packed-cache", *words] if "packed" in sharing else words
        process = [sys.executable, __file__, "--measure", str(bundle), *words]
        done = subprocess.run(process, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{process}:\n{done.stderr[-4000:]}")
        told = json.loads(done.stdout.splitlines()[-1])
    expected = "off" if sharing == "off" else "on"
    if told["facts"]["weight_cache"] != expected or ("packed" in sharing) != (
        told["facts"]["packed_cache"].startswith("proven")
    ):
        raise RuntimeError(f"{bundle} with sharing {sharing} was measured otherwise: {told['facts']}")
    fields = {name: told[name] for name in ("before", "base", "both", "further", "peak")}
    return Row(policy=policy, layout=layout, sharing=sharing, **fields)


def rows(work: Path, bundle: Path, policy: str, layout: str) -> Iterator[Row]:
    packed = work / "packed"
    for sharing in SHARINGS:
        yield measured(bundle, policy, layout, sharing, packed)
    shutil.rmtree(packed)


def table(found: Sequence[dict[str, Any]], adapter_bytes: int) -> str:
    lines = [
        f"The adapter's matrices are {adapter_bytes / 1e6:.1f} MB. GB of 10^9 bytes, resident (anonymous + mapped).",
        "",
        "| policy | layout | sharing | base | with adapter | published | it adds | published | a further one | peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        first, shared, apart = PUBLISHED[row["policy"]]
        published = apart if row["sharing"] == "off" else shared
        cells = [row["policy"], row["layout"], row["sharing"], _gigabytes(row["base"]), _gigabytes(row["both"])]
        cells += [f"{published:.2f}", _megabytes(row["added"]), f"{published - first:.2f} GB"]
        cells += [_megabytes(row["then"]), f"{row['peak'] / 1e9:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _megabytes(memory: dict[str, int]) -> str:
    return f"{memory['resident'] / 1e6:.0f} MB"


def _gigabytes(memory: dict[str, int]) -> str:
    return f"{memory['resident'] / 1e9:.2f} ({memory['anonymous'] / 1e9:.2f} + {memory['file_backed'] / 1e9:.2f})"


def record(results: Path, kind: str, name: str, value: dict[str, Any]) -> None:
    """Add one result to what the file has by now."""
    kept = read_results(results)
    kept[kind][name] = value
    results.write_text(json.dumps(kept, indent=1), "utf-8")


def read_results(results: Path) -> dict[str, dict[str, Any]]:
    return json.loads(results.read_text("utf-8")) if results.is_file() else {"exports": {}, "rows": {}}


def run(chosen: argparse.Namespace) -> None:
    shorter = "" if chosen.max_seq_len == CONTEXT else f"-calls-{chosen.max_seq_len}"
    work = chosen.output.resolve() / f"layers-{chosen.layers}{shorter}"
    model = qwen3_shape.write_model(work / "model", chosen.layers)
    adapter_bytes = qwen3_shape.write_adapter(work / "adapter", chosen.layers)
    qwen3_shape.write_adapter(work / "adapter-2", chosen.layers, seed=2)
    results = work / "results.json"
    for policy in chosen.policy or POLICIES:
        for layout in chosen.layout or LAYOUTS:
            name = f"{policy}, {layout}"
            bundle = work / name.replace(" + embedding 8,0", "-e8").replace(", ", "-")
            exported = export(model, work / "adapter", bundle, policy, layout, chosen.max_seq_len)
            if exported:
                record(results, "exports", name, exported)
            if not chosen.export_only:
                add_further(bundle, work / "adapter-2")
                for row in rows(work, bundle, policy, layout):
                    record(results, "rows", f"{name}, {row.sharing}", row.to_json())
    order = [f"{p}, {layout}, {s}" for p in POLICIES for layout in LAYOUTS for s in SHARINGS]
    found = read_results(results)["rows"]
    print(table([found[name] for name in order if name in found], adapter_bytes))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=qwen3_shape.CONFIG["num_hidden_layers"])
    parser.add_argument("--max-seq-len", type=int, default=CONTEXT, help="the longest call, as `lora-core export`")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/memory"))
    parser.add_argument("--policy", action="append", choices=list(POLICIES))
    parser.add_argument("--layout", action="append", choices=LAYOUTS)
    parser.add_argument("--export-only", action="store_true", help="measure nothing yet")
    parser.add_argument("--measure", type=Path, metavar="BUNDLE", help=argparse.SUPPRESS)
    parser.add_argument("--weight-cache", choices=("on", "off"), default="on", help=argparse.SUPPRESS)
    parser.add_argument("--packed-cache", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        print(json.dumps(measure(chosen.measure, weight_cache=chosen.weight_cache == "on", packed=chosen.packed_cache)))
    else:
        run(chosen)


if __name__ == "__main__":
    main()
