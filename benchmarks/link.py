"""Linking against exporting: what another adapter costs, with ExecuTorch's own exporter as the peer in the same run.

    python benchmarks/link.py --model build/models/SmolLM2-135M-Instruct [--part peer|export|add|ranks ...]

Prints a Markdown table for docs/benchmarks.md and writes results.json beside the bundles; a part that is run again
replaces its rows. `add` takes the bundle that `export` wrote. All parts together take about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import export_llm
import numpy as np
from measured import Cost, run_lora_core
from safetensors.numpy import save_file

EXAMPLES = Path(__file__).parent.parent / "examples" / "adapters"
CONTEXT = 256
REPEATS = 11


def export(model: Path, out: Path, *adapters: str, cache: Path | None = None) -> Cost:
    words = [word for adapter in adapters for word in ("--adapter", adapter)]
    keep = ("--cache", cache) if cache else ("--no-cache",)
    lengths = ("--max-context-len", str(CONTEXT), "--max-seq-len", str(CONTEXT))
    return run_lora_core(
        "export", "--backend", "xnnpack", "--model", model, *words, *lengths, *keep, "--force", "-o", out
    )


def write_adapter(model: Path, directory: Path, *, rank: int, seed: int) -> None:
    """Write a random q,v adapter of `rank` for the model at `model`."""
    config = json.loads((model / "config.json").read_text("utf-8"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for name, width in (("q_proj", hidden), ("v_proj", narrow)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = generator.standard_normal((rank, hidden), dtype=np.float32)
            tensors[f"{prefix}.lora_B.weight"] = generator.standard_normal((width, rank), dtype=np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "v_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(fields), "utf-8")


def median_add(bundle: Path, adapter: Path) -> Cost:
    """Add and remove one adapter REPEATS times; return the median add."""
    runs = []
    for _ in range(REPEATS):
        runs.append(run_lora_core("add", bundle, "--adapter", f"extra={adapter}"))
        run_lora_core("remove", bundle, "extra")
    return Cost(
        seconds=statistics.median(run.seconds for run in runs),
        cpu_seconds=statistics.median(run.cpu_seconds for run in runs),
        peak_memory=max(run.peak_memory for run in runs),
    )


def batch(bundle: Path, model: Path, count: int, rank: int, work: Path) -> Cost:
    """Add `count` adapters of `rank` in one command to a copy of `bundle` (hard links: nothing is copied)."""
    source = work / f"adapters-{rank}"
    for index in range(count):
        if not (source / f"a{index:04d}").exists():
            write_adapter(model, source / f"a{index:04d}", rank=rank, seed=index)
    chosen = work / "chosen"
    shutil.rmtree(chosen, ignore_errors=True)
    chosen.mkdir()
    for index in range(count):
        (chosen / f"a{index:04d}").symlink_to((source / f"a{index:04d}").resolve())
    target = work / "batch-bundle"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(bundle, target, copy_function=os.link)
    cost = run_lora_core("add", target, "--from-dir", chosen)
    shutil.rmtree(target)
    return cost


def peer(model: Path, work: Path) -> dict[str, Cost]:
    prepared = export_llm.prepare(model, work / "peer")
    base = export_llm.run(prepared, work / "peer/base", adapter=None, context=CONTEXT, log=work / "peer/base.log")
    lora = export_llm.run(
        prepared, work / "peer/lora", adapter=EXAMPLES / "pirate", context=CONTEXT, log=work / "peer/lora.log"
    )
    return {"peer base": base.cost, "peer base + adapter": lora.cost}


def exports(model: Path, work: Path) -> dict[str, Cost]:
    """Export with one adapter, then from the cache with one and with a hundred."""
    bundle, cache = work / "bundle", work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    pirate = f"pirate={EXAMPLES / 'pirate'}"
    first = export(model, bundle, pirate, cache=cache)
    again = export(model, bundle, pirate, cache=cache)
    hundred = []
    for index in range(100):
        directory = work / "adapters-8" / f"a{index:04d}"
        write_adapter(model, directory, rank=8, seed=index)
        hundred.append(f"a{index:04d}={directory}")
    many = export(model, work / "hundred", *hundred, cache=cache)
    shutil.rmtree(work / "hundred")
    return {
        "first export, base + adapter": first,
        "the same from the cache": again,
        "100 adapters, from the cache": many,
    }


def adding(model: Path, work: Path) -> dict[str, Cost]:
    results = {"add one adapter, whole process": median_add(work / "bundle", EXAMPLES / "shout")}
    for count in (1, 10, 100, 1000):
        results[f"add {count} adapters, r=8"] = batch(work / "bundle", model, count, 8, work)
    return results


def ranks(model: Path, work: Path) -> dict[str, Cost]:
    """Link 100 adapters of one rank in one command, for several ranks; each bundle is exported for its rank."""
    results: dict[str, Cost] = {}
    for rank in (4, 8, 16, 32, 64):
        directory = work / f"adapters-{rank}" / "a0000"
        write_adapter(model, directory, rank=rank, seed=0)
        bundle = work / f"bundle-{rank}"
        if not bundle.exists():
            export(model, bundle, f"first={directory}", cache=work / "cache")
        results[f"add 100 adapters, r={rank}"] = batch(bundle, model, 100, rank, work)
    return results


PARTS: dict[str, Callable[[Path, Path], dict[str, Cost]]] = {
    "peer": peer,
    "export": exports,
    "add": adding,
    "ranks": ranks,
}


def table(results: dict[str, Any]) -> str:
    lines = ["| what | seconds | CPU seconds | peak memory |", "|---|---|---|---|"]
    for name, row in results.items():
        cells = (f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", f"{row['peak_memory'] / 1e6:.0f} MB")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure linking against exporting.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/link"))
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part (default: all)")
    chosen = parser.parse_args(arguments)
    model, work = chosen.model.resolve(), chosen.output.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = work / "results.json"
    results = json.loads(path.read_text("utf-8"))["results"] if path.is_file() else {}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    for part in chosen.part or PARTS:
        results |= {name: attrs.asdict(cost) for name, cost in PARTS[part](model, work).items()}
        path.write_text(json.dumps({"machine": machine, "results": results}, indent=2), "utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
