"""The lean graph against ExecuTorch's own: what lowering costs, what the program holds, how fast it runs.

    python benchmarks/lean.py MODEL --work DIR [--layers 4] [--policy fp32] [--embedding 8,0] [--rounds 9]

Both are lowered from the same base, each in a process of its own: as `lora-core export` does, and as ExecuTorch
defines the decoder, with the two partitioners of its exporter (both by our fast lowering). Then one process runs both
in turn, with one thread: a prompt of 128 tokens and 16 steps a round, medians of CPU milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

GRAPHS = ("executorch", "lean")
CONTEXT, PROMPT, STEPS = 512, 128, 16


def cut(model: Path, layers: int, out: Path) -> Path:
    """Write the first `layers` layers of the checkpoint `model` into `out`."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    out.mkdir(parents=True, exist_ok=True)
    kept = {}
    for file in model.glob("*.safetensors"):
        with safe_open(file, "numpy") as stored:
            for name in stored.keys():  # noqa: SIM118 - it is no mapping
                words = name.split(".")
                if words[1] != "layers" or int(words[2]) < layers:
                    kept[name] = stored.get_tensor(name)
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text("utf-8"))
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}), "utf-8")
    return out


def lower(model: Path, graph: str, policy: str, embedding: str | None, out: Path) -> None:
    """Lower the base as `graph` says, and write its files and its figures into `out`."""
    import lora_core_xnnpack.lowering.lean as rewriting
    from executorch import exir
    from executorch.backends.xnnpack.partition import xnnpack_partitioner as partitioners
    from lora_core_xnnpack.lowering.base import load_base
    from lora_core_xnnpack.lowering.lowering import lower as lower_modules
    from lora_core_xnnpack.options import XnnpackOptions

    from lora_core.backend import ExportJob
    from lora_core.events import ignore
    from lora_core.models.hf import HfModelSource
    from lora_core.quant.policies import POLICIES, parse_policy

    if graph == "executorch":
        rewriting.lean = lambda module: module
        both = [partitioners.XnnpackDynamicallyQuantizedPartitioner(), partitioners.XnnpackPartitioner()]
        original = exir.to_edge_transform_and_lower
        exir.to_edge_transform_and_lower = lambda programs, **words: original(
            programs, **{**words, "partitioner": both}
        )
    job = ExportJob(
        model=HfModelSource().open(str(model)),
        adapters=(),
        plans=(),
        policy=parse_policy(policy, {each.name: each for each in POLICIES}, embedding=embedding),
        options=XnnpackOptions(max_context_len=CONTEXT, max_seq_len=CONTEXT),
    )
    base = load_base(job, ignore)
    start = time.process_time()
    lowered = lower_modules({"forward": base.module}, base)
    took = time.process_time() - start
    out.mkdir(parents=True)
    lowered.manager.write_tensor_data_to_file(str(out))
    (out / "base.pte").write_bytes(lowered.pte)
    plan = next(plan for plan in lowered.manager.executorch_program.execution_plan if plan.name == "forward")
    figures = {
        "lowering, CPU s": round(took, 1),
        "program, bytes": len(lowered.pte),
        "instructions": len(plan.chains[0].instructions),
        "delegates": len(plan.delegates),
        "values": len(plan.values),
        "planned, bytes": sum(plan.non_const_buffer_sizes),
    }
    (out / "figures.json").write_text(json.dumps(figures), "utf-8")


def run(work: Path, rounds: int) -> dict[str, Any]:
    """Return for each graph the medians of prompt and step, and how far their logits are apart."""
    import executorch.kernels.quantized  # noqa: F401 - registers the kernels of quantized embeddings
    import torch
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401 - registers the attention
    from executorch.extension.pybindings import portable_lib

    torch.set_num_threads(1)
    portable_lib._unsafe_reset_threadpool(1)
    tokens = torch.randint(3, 1000, (1, PROMPT + STEPS), generator=torch.Generator().manual_seed(0))
    programs = {
        graph: portable_lib._load_for_executorch(str(work / graph / "base.pte"), str(work / graph / "foundation.ptd"))
        for graph in GRAPHS
    }
    took: dict[str, dict[str, list[float]]] = {graph: {"prompt": [], "step": []} for graph in GRAPHS}
    logits: dict[str, list[Any]] = {}
    for _ in range(rounds + 1):
        for graph, program in programs.items():
            logits[graph] = []
            calls = [(0, PROMPT), *((position, 1) for position in range(PROMPT, PROMPT + STEPS))]
            for position, length in calls:
                start = time.process_time()
                (found,) = program.forward((tokens[:, position : position + length], torch.tensor([position])))
                took[graph]["prompt" if length > 1 else "step"].append(1000 * (time.process_time() - start))
                logits[graph].append(found.clone())
    ours, theirs = (torch.cat(logits[graph]) for graph in reversed(GRAPHS))
    medians = {
        graph: {f"{what}, ms": round(median(found[len(found) // (rounds + 1) :]), 1) for what, found in times.items()}
        for graph, times in took.items()
    }
    apart = float((ours - theirs).abs().max() / theirs.abs().max())
    same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    return {**medians, "largest difference": apart, "top-1": f"{same} of {len(ours)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="cut the model to its first layers")
    parser.add_argument("--policy", default="fp32")
    parser.add_argument("--embedding")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lower", choices=GRAPHS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.lower:
        lower(chosen.model, chosen.lower, chosen.policy, chosen.embedding, chosen.work / chosen.lower)
        return
    shutil.rmtree(chosen.work, ignore_errors=True)
    model = cut(chosen.model, chosen.layers, chosen.work / "model") if chosen.layers else chosen.model
    words = ["--work", str(chosen.work), "--policy", chosen.policy]
    words += ["--embedding", chosen.embedding] if chosen.embedding else []
    for graph in GRAPHS:
        subprocess.run([sys.executable, __file__, str(model), *words, "--lower", graph], check=True)
        print(graph, json.loads((chosen.work / graph / "figures.json").read_text("utf-8")), flush=True)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
    print(json.dumps(run(chosen.work, chosen.rounds), indent=1))


if __name__ == "__main__":
    main()
