"""Figures of the CoreML backend on a real model: size law, sharing, link against lowering, memory.

    python benchmarks/coreml.py MODEL_DIR [--policy fp16] [--input-len 1] [--max-context-len 256] [--json FILE]

MODEL_DIR is SmolLM2-135M-Instruct in Hugging Face layout; adapters are those of examples/adapters. One run exports the
base alone, the base with one adapter and with two, then adds the second to the bundle of one and compares the bytes.
Adding runs in a process of its own, whose peak memory is reported. `--lowering` also lowers the three methods as
ExecuTorch's own multi-method partitioner does, for comparison.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.quiet import quiet

import lora_core
from lora_core.adapters.padding import padded_pair
from lora_core.adapters.peft import PeftFormat
from lora_core.models.hf import HfModelSource
from lora_core.models.lora import eject, inject, lora_layers

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = {name: ROOT / "examples" / "adapters" / name for name in ("pirate", "shout")}
ADD = """
import json, resource, sys, time
import lora_core
start = time.perf_counter()
lora_core.add(sys.argv[1], {sys.argv[2]: sys.argv[3]})
print(json.dumps({"seconds": time.perf_counter() - start,
                  "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def main() -> None:
    arguments = parse()
    options = {"input_len": arguments.input_len, "max_context_len": arguments.max_context_len}
    figures: dict[str, Any] = {"policy": arguments.policy, **options}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, adapters in (("base", []), ("one", ["pirate"]), ("two", ["pirate", "shout"])):
            figures[label] = export(folder / label, arguments, adapters, options)
            print(label, figures[label], flush=True)
        command = [sys.executable, "-c", ADD, str(folder / "one"), "shout", str(ADAPTERS["shout"])]
        figures["add"] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        figures["add"]["equal_bytes"] = digest(folder / "one") == digest(folder / "two")
        print("add", figures["add"], flush=True)
        own = figures["two"]["adapter_bytes"]
        figures["growth"] = figures["two"]["bytes"] - figures["base"]["bytes"]
        figures["allowed"] = own * 1.02 + 2 * 64 * 1024
        figures["duplicate_bytes"] = duplicates(folder / "two")
    if arguments.lowering:
        figures["lowering_seconds"] = lower_three(arguments, options)
        figures["times_faster"] = figures["lowering_seconds"] / figures["add"]["seconds"]
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--policy", default="fp16")
    parser.add_argument("--input-len", type=int, default=1)
    parser.add_argument("--max-context-len", type=int, default=256)
    parser.add_argument("--lowering", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def export(out: Path, arguments: argparse.Namespace, adapters: list[str], options: dict[str, int]) -> dict[str, Any]:
    start = time.perf_counter()
    bundle = lora_core.export(
        str(arguments.model),
        adapters={name: str(ADAPTERS[name]) for name in adapters},
        backend="coreml",
        policy=arguments.policy,
        out=out,
        options=options,
    )
    blobs = list(CoremlBackend().sharing.blobs(bundle))
    return {
        "seconds": time.perf_counter() - start,
        "bytes": (out / "model.pte").stat().st_size,
        "adapter_bytes": sum(blob.size for blob in blobs if "forward" not in blob.methods),
        "foundation": bundle.manifest.foundation,
        "peak_so_far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / "model.pte").read_bytes()).hexdigest()


def duplicates(path: Path) -> int:
    """Bytes of blobs whose bytes are stored before."""
    seen: set[str] = set()
    twice = 0
    for blob in CoremlBackend().sharing.blobs(lora_core.inspect(path).bundle):
        twice += blob.size if blob.sha256 in seen else 0
        seen.add(blob.sha256)
    return twice


def lower_three(arguments: argparse.Namespace, options: dict[str, int]) -> float:
    """Seconds of torch.export and ExecuTorch's positional multi-method lowering of the base and two adapters."""
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import (
        MULTIMETHOD_WEIGHT_SHARING_STRATEGY,
        CoreMLBackend,
    )
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from lora_core_coreml.lowering import export_method
    from lora_core_coreml.options import CoremlOptions
    from lora_core_coreml.preparation import base
    from lora_core_coreml.quant import POLICIES

    from lora_core.adapters.slots import SlotPlan
    from lora_core.backend import ExportJob

    handle = HfModelSource().open(str(arguments.model))
    adapters = tuple(PeftFormat().read(name, path, handle.summary) for name, path in ADAPTERS.items())
    plan = SlotPlan.from_adapters(adapters, handle.summary.layers)
    policy = next(policy for policy in POLICIES if policy.name == arguments.policy)
    job = ExportJob(model=handle, adapters=adapters, plans=(plan,), policy=policy, options=CoremlOptions(**options))
    start = time.perf_counter()
    prepared = base.prepare(job)
    example = prepared.inputs(prepared.shapes[0])
    programs = {"forward": export_method(prepared.module, example)}
    for adapter in adapters:
        pairs = {slot.module: padded_pair(pair, slot) for slot, pair in plan.bind(adapter)}
        inject(prepared.module, plan, prepared.layers, pairs)
        for _, layer in lora_layers(prepared.module):
            layer.lora_a.to(prepared.dtype)
            layer.lora_b.to(prepared.dtype)
        programs[adapter.name] = export_method(prepared.module, example)
        eject(prepared.module)
    with quiet():
        specs = CoreMLBackend.generate_compile_specs(
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT16,
            compute_unit=ct.ComputeUnit.CPU_AND_NE,
        )
        strategy = MULTIMETHOD_WEIGHT_SHARING_STRATEGY.POSITIONAL
        specs.append(CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec(strategy))
        to_edge_transform_and_lower(
            programs,
            partitioner=[CoreMLPartitioner(compile_specs=specs, take_over_mutable_buffer=False)],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
