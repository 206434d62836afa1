"""Linking against exporting: what another adapter costs, with ExecuTorch's own exporter as the peer in the same run.

    python benchmarks/link.py --model build/models/SmolLM2-135M-Instruct [--no-peer] [--output build/benchmarks/link]

Prints a Markdown table for docs/benchmarks.md and writes results.json beside the bundles. With the peer it takes about
half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import export_llm
import numpy as np
from safetensors.numpy import save_file

EXAMPLES = Path(__file__).parent.parent / "examples" / "adapters"
CONTEXT = 256
REPEATS = 11


@attrs.frozen(kw_only=True)
class Measured:
    """A process: wall seconds and peak resident memory in bytes."""

    seconds: float
    peak_memory: int


def command(*arguments: str | Path) -> Measured:
    """Run `lora-core` as a whole process and measure it."""
    program = Path(sys.executable).with_name("lora-core")
    start = time.monotonic()
    process = subprocess.Popen([program, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    stderr = process.stderr.read()
    _, status, peak = export_llm.wait4(process)
    if status:
        raise RuntimeError(f"{arguments}: {stderr.decode()}")
    return Measured(seconds=time.monotonic() - start, peak_memory=peak)


def export(model: Path, out: Path, *adapters: str, cache: Path | None = None) -> Measured:
    words = [word for adapter in adapters for word in ("--adapter", adapter)]
    keep = ("--cache", cache) if cache else ("--no-cache",)
    lengths = ("--max-context-len", str(CONTEXT), "--max-seq-len", str(CONTEXT))
    return command("export", "--backend", "xnnpack", "--model", model, *words, *lengths, *keep, "--force", "-o", out)


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


def median_add(bundle: Path, adapter: Path) -> Measured:
    """Add and remove one adapter REPEATS times; return the median add."""
    runs = []
    for _ in range(REPEATS):
        runs.append(command("add", bundle, "--adapter", f"extra={adapter}"))
        command("remove", bundle, "extra")
    return Measured(
        seconds=statistics.median(run.seconds for run in runs), peak_memory=max(run.peak_memory for run in runs)
    )


def batch(bundle: Path, model: Path, count: int, rank: int, work: Path) -> Measured:
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
    measured = command("add", target, "--from-dir", chosen)
    shutil.rmtree(target)
    return measured


def peer(model: Path, work: Path) -> dict[str, Any]:
    prepared = export_llm.prepare(model, work / "peer")
    base = export_llm.run(prepared, work / "peer/base", adapter=None, context=CONTEXT, log=work / "peer/base.log")
    lora = export_llm.run(
        prepared, work / "peer/lora", adapter=EXAMPLES / "pirate", context=CONTEXT, log=work / "peer/lora.log"
    )
    return {"peer base": attrs.asdict(base), "peer base + adapter": attrs.asdict(lora)}


def ours(model: Path, work: Path) -> dict[str, Any]:
    bundle, cache = work / "bundle", work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    results: dict[str, Any] = {}
    pirate = f"pirate={EXAMPLES / 'pirate'}"
    results["first export, base + adapter"] = export(model, bundle, pirate, cache=cache)
    results["the same from the cache"] = export(model, bundle, pirate, cache=cache)
    hundred = []
    for index in range(100):
        directory = work / "adapters-8" / f"a{index:04d}"
        write_adapter(model, directory, rank=8, seed=index)
        hundred.append(f"a{index:04d}={directory}")
    results["100 adapters, from the cache"] = export(model, work / "hundred", *hundred, cache=cache)
    shutil.rmtree(work / "hundred")
    results["add one adapter, whole process"] = median_add(bundle, EXAMPLES / "shout")
    for count in (1, 10, 100, 1000):
        results[f"add {count} adapters, r=8"] = batch(bundle, model, count, 8, work)
    return {name: attrs.asdict(measured) for name, measured in results.items()}


def ranks(model: Path, work: Path) -> dict[str, Any]:
    """Link 100 adapters of one rank in one command, for several ranks; each bundle is exported for its rank."""
    results: dict[str, Any] = {}
    for rank in (4, 8, 16, 32, 64):
        directory = work / f"adapters-{rank}" / "a0000"
        write_adapter(model, directory, rank=rank, seed=0)
        bundle = work / f"bundle-{rank}"
        export(model, bundle, f"first={directory}", cache=work / "cache")
        results[f"add 100 adapters, r={rank}"] = attrs.asdict(batch(bundle, model, 100, rank, work))
        shutil.rmtree(bundle)
    return results


def table(results: dict[str, Any]) -> str:
    lines = ["| what | seconds | peak memory |", "|---|---|---|"]
    for name, row in results.items():
        lines.append(f"| {name} | {row['seconds']:.2f} | {row['peak_memory'] / 1e6:.0f} MB |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure linking against exporting.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/link"))
    parser.add_argument("--no-peer", action="store_true", help="leave out ExecuTorch's own exporter (15 minutes)")
    parser.add_argument("--ranks", action="store_true", help="also r = 4 to 64 (one more lowering each)")
    chosen = parser.parse_args(arguments)
    model, work = chosen.model.resolve(), chosen.output.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results = {} if chosen.no_peer else peer(model, work)
    results |= ours(model, work)
    if chosen.ranks:
        results |= ranks(model, work)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    text = json.dumps({"machine": machine, "results": results}, indent=2, default=str)
    (work / "results.json").write_text(text, "utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
