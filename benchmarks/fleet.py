"""Fleets: what one adapter costs in a bundle of many, and packages by the thousand.

    python benchmarks/fleet.py --bundle BUNDLE --adapter DIR [--part many|pack|ray ...] [--adapters 10000]

BUNDLE is an XNNPACK bundle in the split layout with room for the adapter in DIR. `many` grows copies of it to 10, 100,
1,000 and 10,000 adapters (hard links to one's files, with a record each) and measures whole processes that add, open
and run one. `pack` packs as many adapters (variants of DIR, written once) by two processes, then again with nothing
changed. `ray` packs 2,000 by two processes of either executor; it needs lora-core-ray.

Prints Markdown tables for docs/benchmarks.md; results.json keeps the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from measured import Cost, run, run_lora_core
from safetensors.numpy import load_file, save_file

from lora_core.bundle.bundle import AdapterRecord
from lora_core.bundle.store import open_bundle
from lora_core.bundle.transaction import change
from lora_core.events import ignore

SIZES = (10, 100, 1_000, 10_000)
REPEATS = 3

# Says which files of the bundle a process opens: their number and their bytes.
COUNTER = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and isinstance(args[0], str) else None)
import lora_core
bundle, act, adapter = sys.argv[1:4]
if act == "add":
    lora_core.add(bundle, {"extra": adapter})
elif act == "open":
    lora_core.open(bundle).load("a0000001")
mine = [path for path in opened if path.startswith(bundle) and os.path.isfile(path)]
small = [path for path in mine if path.endswith(".json")]
print(len(mine), sum(os.path.getsize(path) for path in small))
"""


def grown(bundle: Path, adapter: Path, number: int, work: Path) -> Path:
    """Return a copy of `bundle` with `number` adapters called a0000000, ...; their files are links to one's."""
    target = work / f"bundle-{number}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(bundle, target, copy_function=os.link)
    (target / "manifest.json").unlink()
    shutil.copy(bundle / "manifest.json", target / "manifest.json")
    run_lora_core("add", target, "--adapter", f"model={adapter}")
    with change(target, ignore) as changing:
        record = changing.bundle.manifest.record("model")
        assert record is not None
        records = []
        for index in range(number):
            name = f"a{index:07d}"
            for artifact in record.artifacts:
                os.link(target / artifact.path, changing.out / artifact.path.replace("model", name))
            records.append(renamed(record, name))
        changing.commit(changing.bundle.manifest.with_records(records, ["model"]))
    return target


def renamed(record: AdapterRecord, name: str) -> AdapterRecord:
    def other(path: str) -> str:
        return path.replace("model", name)

    return AdapterRecord(
        adapter=attrs.evolve(record.adapter, name=name),
        artifacts=tuple(attrs.evolve(each, path=other(each.path), adapter=name) for each in record.artifacts),
        methods=tuple(
            attrs.evolve(each, name=other(each.name), program=other(each.program), adapter=name)
            for each in record.methods
        ),
    )


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        seconds=statistics.median(each.seconds for each in costs),
        cpu_seconds=statistics.median(each.cpu_seconds for each in costs),
        peak_memory=max(each.peak_memory for each in costs),
    )


def counted(bundle: Path, act: str, adapter: Path) -> list[int]:
    command = [sys.executable, "-c", COUNTER, str(bundle), act, str(adapter)]
    return [int(word) for word in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def many(bundle: Path, adapter: Path, work: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for number in sizes:
        target = grown(bundle, adapter, number, work)
        adds, opens, runs = [], [], []
        for _ in range(REPEATS):
            adds.append(run_lora_core("add", target, "--adapter", f"extra={adapter}"))
            opens.append(run(sys.executable, "-c", f"import lora_core; lora_core.open({str(target)!r}).close()"))
            words = ("--adapter", "a0000001", "--prompt", "Hello", "--max-new-tokens", "2", "--raw")
            runs.append(run_lora_core("run", target, *words))
            run_lora_core("remove", target, "extra")
        opened = {"open": counted(target, "open", adapter), "add": counted(target, "add", adapter)}
        row = {"adapters": number, "opened": opened}
        for name, costs in (("add", adds), ("open", opens), ("run", runs)):
            row[name] = attrs.asdict(median(costs))
        rows.append(row)
        shutil.rmtree(target)
    return rows


def variants(adapter: Path, number: int, work: Path) -> Path:
    """Write `number` adapters, each the one in `adapter` with other values; those that are there are kept."""
    source = work / f"adapters-{number}"
    tensors = load_file(adapter / "adapter_model.safetensors")
    for index in range(number):
        directory = source / f"a{index:07d}"
        if (directory / "adapter_config.json").exists():
            continue
        directory.mkdir(parents=True, exist_ok=True)
        factor = 1 + index / number
        scaled = {name: (tensor * factor).astype(tensor.dtype) for name, tensor in tensors.items()}
        save_file(scaled, directory / "adapter_model.safetensors")
        shutil.copy(adapter / "adapter_config.json", directory / "adapter_config.json")
    return source


def packed(source: Path, bundle: Path, out: Path, *more: str) -> Cost:
    return run_lora_core("pack-all", source, "--bundle", bundle, "-o", out, "--jobs", "2", *more)


def packing(bundle: Path, adapter: Path, work: Path, number: int) -> list[dict[str, Any]]:
    rows = []
    for count in (number // 10, number):
        source, out = variants(adapter, count, work), work / "packages"
        shutil.rmtree(out, ignore_errors=True)
        first, again = packed(source, bundle, out), packed(source, bundle, out)
        shutil.rmtree(out)
        rows.append({"adapters": count, "first": attrs.asdict(first), "again": attrs.asdict(again)})
    return rows


def executors(bundle: Path, adapter: Path, work: Path, number: int) -> list[dict[str, Any]]:
    source, out = variants(adapter, number, work), work / "packages"
    rows = []
    for name in ("local", "ray", "local", "ray"):
        shutil.rmtree(out, ignore_errors=True)
        cost = packed(source, bundle, out, "--executor", name)
        rows.append({"executor": name, "adapters": number, **attrs.asdict(cost)})
    return rows


def cell(cost: dict[str, Any]) -> str:
    return f"{cost['cpu_seconds']:.2f} / {cost['seconds']:.2f}"


def show(results: dict[str, Any]) -> None:
    if "many" in results:
        print("| adapters | add, CPU s / s | open | run | files opened by add, open | their JSON, kB |")
        print("|---|---|---|---|---|---|")
        for row in results["many"]:
            added, opened = row["opened"]["add"], row["opened"]["open"]
            costs = " | ".join(cell(row[name]) for name in ("add", "open", "run"))
            sizes = f"{added[1] / 1000:.0f}, {opened[1] / 1000:.0f}"
            print(f"| {row['adapters']} | {costs} | {added[0]}, {opened[0]} | {sizes} |")
    for row in results.get("pack", ()):
        first, again = row["first"], row["again"]
        rate, quicker = row["adapters"] / first["seconds"], first["seconds"] / again["seconds"]
        memory = first["peak_memory"] / 1e6
        print(f"{row['adapters']} packed: {cell(first)} s, {rate:.0f} a second, peak {memory:.0f} MB; ", end="")
        print(f"again {cell(again)} s, {quicker:.0f} times faster")
    for row in results.get("ray", ()):
        print(f"{row['executor']}, {row['adapters']}: {cell(row)} s, {row['adapters'] / row['seconds']:.0f} a second")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure bundles of many adapters, and fleets.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/fleet"))
    parser.add_argument("--part", action="append", choices=("many", "pack", "ray"), help="default: all")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--adapters", type=int, default=10_000)
    chosen = parser.parse_args(arguments)
    bundle, adapter, work = chosen.bundle.resolve(), chosen.adapter.resolve(), chosen.output.resolve()
    open_bundle(bundle)
    work.mkdir(parents=True, exist_ok=True)
    path = work / "results.json"
    results = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for part in chosen.part or ("many", "pack", "ray"):
        if part == "many":
            results[part] = many(bundle, adapter, work, chosen.sizes)
        elif part == "pack":
            results[part] = packing(bundle, adapter, work, chosen.adapters)
        else:
            results[part] = executors(bundle, adapter, work, min(2_000, chosen.adapters))
        path.write_text(json.dumps(results, indent=2), "utf-8")
    show(results)


if __name__ == "__main__":
    main()
