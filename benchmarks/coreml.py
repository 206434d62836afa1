"""Figures of the CoreML backend on a real model: size law, sharing, link against lowering, memory.

    python benchmarks/coreml.py MODEL_DIR [--policy fp16] [--input-len 1] [--max-context-len 256] [--output DIR]

MODEL_DIR is SmolLM2-135M-Instruct in Hugging Face layout; adapters are two of examples/adapters. It exports the base
alone, with one adapter and with two, adds the second to the bundle of one and compares the bytes; then (unless
`--no-peer`) it lowers the base alone and the same three methods as ExecuTorch's own positional multi-method partitioner
does. Every step runs in a process of its own, whose peak memory is reported. The bundles stay under DIR, beside
results.json. About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_core.adapters.slots.choice import PlacedAdapter

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = {name: ROOT / "examples" / "adapters" / name for name in ("pirate", "shout")}
OVERHEAD = 64 * 1024


def main() -> None:
    arguments = parse()
    folder = arguments.output / arguments.policy
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    figures: dict[str, Any] = {"policy": arguments.policy, "options": options(arguments)}

    def record(name: str, value: Any) -> None:
        figures[name] = value
        print(name, json.dumps(value), flush=True)
        (folder / "results.json").write_text(json.dumps(figures, indent=1) + "\n")

    for label, adapters in (("base", []), ("two", ["pirate", "shout"]), ("one", ["pirate"])):
        record(label, apart(export, folder / label, arguments, adapters))
    record("size_law", size_law(figures["base"], figures["two"]))
    shutil.copytree(folder / "one", folder / "added")
    record("add", apart(add, folder / "added", "shout"))
    record("added_equals_exported", same_bytes(folder / "added", folder / "two"))
    record("inspect", inspect(folder / "two"))
    if arguments.peer:
        record("peer_three", apart(lower, arguments, list(ADAPTERS)))
        record("times_faster", figures["peer_three"]["lowering_seconds"] / figures["add"]["seconds"])
        record("peer_base", apart(lower, arguments, []))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--policy", default="fp16")
    parser.add_argument("--input-len", type=int, default=1)
    parser.add_argument("--max-context-len", type=int, default=256)
    parser.add_argument("--no-peer", dest="peer", action="store_false")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "benchmarks" / "coreml")
    return parser.parse_args()


def options(arguments: argparse.Namespace) -> dict[str, int]:
    return {"input_len": arguments.input_len, "max_context_len": arguments.max_context_len}


def apart(function: Any, *arguments: Any) -> dict[str, Any]:
    """Call `function` in a new process; add wall seconds of the whole process and its peak resident memory."""
    start = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result: dict[str, Any] = pool.submit(_measured, function, arguments).result()
    return {**result, "process_seconds": time.perf_counter() - start}


def _measured(function: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    result: dict[str, Any] = function(*arguments)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {**result, "peak_bytes": usage.ru_maxrss * 1024, "cpu_seconds": usage.ru_utime + usage.ru_stime}


def export(out: Path, arguments: argparse.Namespace, adapters: list[str]) -> dict[str, Any]:
    import lora_core

    start = time.perf_counter()
    bundle = lora_core.export(
        str(arguments.model),
        adapters={name: str(ADAPTERS[name]) for name in adapters},
        backend="coreml",
        policy=arguments.policy,
        out=out,
        options=options(arguments),
    )
    return {
        "seconds": time.perf_counter() - start,
        "program_bytes": (out / "model.pte").stat().st_size,
        "stored_adapter_bytes": stored_adapter_bytes(out),
        "peft_bytes": sum((ADAPTERS[name] / "adapter_model.safetensors").stat().st_size for name in adapters),
        "foundation": bundle.manifest.foundation,
    }


def stored_adapter_bytes(path: Path) -> int:
    from lora_core_coreml.backend import CoremlBackend

    import lora_core

    blobs = CoremlBackend().sharing.blobs(lora_core.inspect(path).bundle)
    return sum(blob.size for blob in blobs if "forward" not in blob.methods)


def size_law(base: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Compare what two adapters add with their bytes x 1.02 + 64 KB per method, as stored and as PEFT stores them."""
    growth = two["program_bytes"] - base["program_bytes"]
    return {
        "growth": growth,
        "overhead_per_method": (growth - two["stored_adapter_bytes"]) / len(ADAPTERS),
        "allowed_by_stored_bytes": two["stored_adapter_bytes"] * 1.02 + len(ADAPTERS) * OVERHEAD,
        "allowed_by_peft_bytes": two["peft_bytes"] * 1.02 + len(ADAPTERS) * OVERHEAD,
    }


def add(bundle: Path, name: str) -> dict[str, Any]:
    import lora_core

    start = time.perf_counter()
    lora_core.add(str(bundle), {name: str(ADAPTERS[name])})
    seconds = time.perf_counter() - start
    heavy = sorted(name for name in ("torch", "coremltools", "executorch") if name in sys.modules)
    return {"seconds": seconds, "heavy_imports": heavy}


def same_bytes(left: Path, right: Path) -> dict[str, bool]:
    names = sorted(path.relative_to(right).as_posix() for path in right.rglob("*") if path.is_file())
    return {name: (left / name).read_bytes() == (right / name).read_bytes() for name in names}


def inspect(bundle: Path) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("lora-core")), "inspect", str(bundle), "--json", "--quiet"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    sharing = report["sharing"]
    kept = ("total_bytes", "shared_bytes", "unique_bytes", "duplicates", "saved_bytes")
    return {**{key: sharing[key] for key in kept}, "problems": report["problems"]}


def lower(arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Lower base and adapters `names` as ExecuTorch does: export and lowering timed, preparing the module is not."""
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from executorch.exir.capture._config import ExecutorchBackendConfig
    from lora_core_coreml.quiet import quiet

    methods = prepared_methods(arguments, names)
    start = time.perf_counter()
    programs = {name: make() for name, make in methods}
    with quiet():
        edge = to_edge_transform_and_lower(
            programs,
            partitioner=[peer_partitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        seconds = time.perf_counter() - start
        program = edge.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True)).buffer
    return {"lowering_seconds": seconds, "program_bytes": len(program)}


def prepared_methods(arguments: argparse.Namespace, names: list[str]) -> list[tuple[str, Any]]:
    """Return (method, what exports it) for the base and adapters `names`, in order: each changes the one module."""
    from lora_core_coreml.lowering import base
    from lora_core_coreml.lowering.method import export_method
    from lora_core_coreml.lowering.sentinels import fill
    from lora_core_coreml.options import CoremlOptions
    from lora_core_coreml.quant import POLICIES

    from lora_core.adapters.peft.format import PeftFormat
    from lora_core.adapters.slots.choice import place
    from lora_core.adapters.slots.plan import SlotPlan
    from lora_core.backend import ExportJob
    from lora_core.models.hf import HfModelSource
    from lora_core.models.injection import eject

    handle = HfModelSource().open(str(arguments.model))
    read = tuple(PeftFormat().read(name, ADAPTERS[name], handle.summary) for name in names)
    plans = tuple(SlotPlan.from_adapters(group, handle.summary.layers) for group in [read] if group)
    adapters = place(read, plans)
    policy = next(policy for policy in POLICIES if policy.name == arguments.policy)
    chosen = CoremlOptions(input_len=arguments.input_len, max_context_len=arguments.max_context_len)
    prepared = base.prepare(ExportJob(model=handle, adapters=adapters, plans=plans, policy=policy, options=chosen))
    example = prepared.inputs(prepared.shapes[0])

    def with_adapter(placed: PlacedAdapter) -> Any:
        fill(prepared.module, placed.plan, prepared.paths, placed.values_by_module(), float16=prepared.float16)
        exported = export_method(prepared.module, example)
        eject(prepared.module)
        return exported

    methods: list[tuple[str, Any]] = [("forward", partial(export_method, prepared.module, example))]
    return methods + [(placed.name, partial(with_adapter, placed)) for placed in adapters]


def peer_partitioner() -> Any:
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import (
        MULTIMETHOD_WEIGHT_SHARING_STRATEGY,
        CoreMLBackend,
    )
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        compute_unit=ct.ComputeUnit.CPU_AND_NE,
    )
    strategy = MULTIMETHOD_WEIGHT_SHARING_STRATEGY.POSITIONAL
    specs.append(CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec(strategy))
    return CoreMLPartitioner(compile_specs=specs, take_over_mutable_buffer=False)


if __name__ == "__main__":
    main()
