"""Where the time of a call goes: a prompt and the steps behind it by operator, as ExecuTorch itself records them.

    python benchmarks/operators.py BUNDLE [--adapter NAME] [--prompt 128] [--steps 16] [--threads 1]

A bundle of the split layout is called with ExecuTorch's event tracer (ETDump), whose records XNNPACK's operators are
among, and `executorch.devtools.Inspector` reads them. Milliseconds are wall time. Prints a Markdown table. Packed
weights lie in memory, since the Python interface cannot be told of their file; that changes loading, not calling.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lora_core_xnnpack.files.joining import join_program
from lora_core_xnnpack.runtime.library import load_runtime

_TRACE = "lora_core.etdp"
_WHOLE = "Method::execute"
_AROUND = ("DELEGATE_CALL", "OPERATOR_CALL")  # what contains the others


def record(bundle: Path, adapter: str | None, prompt: int, steps: int, threads: int, work: Path) -> Path:
    """Call the program of `adapter` and return the file of its trace: the prompt is its first run."""
    import torch

    runtime = load_runtime()
    runtime._unsafe_reset_threadpool(threads)
    program = bundle / "base.pte"
    if adapter is not None:
        program = work / "joined.pte"
        with program.open("wb") as file:
            file.writelines(join_program(bundle / f"{adapter}.pte", [bundle / f"{adapter}.ptd"]))
    module = runtime._load_for_executorch(str(program), str(bundle / "foundation.ptd"), enable_etdump=True)
    tokens = torch.arange(2, 2 + prompt, dtype=torch.long)[None]
    module.run_method("forward", (tokens, torch.tensor([0])))
    for position in range(prompt, prompt + steps):
        module.run_method("forward", (tokens[:, :1], torch.tensor([position])))
    module.write_etdump_result_to_file(str(work / _TRACE))
    return work / _TRACE


def by_operator(trace: Path) -> Mapping[str, Sequence[float]]:
    """Return the milliseconds of each kind of operator in every run."""
    from executorch.devtools import Inspector

    found: dict[str, list[float]] = defaultdict(list)
    for block in Inspector(etdump_path=str(trace)).event_blocks:
        for event in block.events:
            if event.perf_data is None or len(event.perf_data.raw) < 2:  # loading has one record
                continue
            sums = found[_kind(event)]
            sums += [0.0] * (len(event.perf_data.raw) - len(sums))
            for run, milliseconds in enumerate(event.perf_data.raw):
                sums[run] += milliseconds
    return found


def _kind(event: Any) -> str:
    """Return an operator's name without its number within a delegate."""
    return re.sub(r" #\d+$", "", event.name)


def table(found: Mapping[str, Sequence[float]], least: float) -> list[str]:
    """Return the rows of the table; operators below `least` of a call are taken together."""
    calls = {name: (runs[0], median(runs[1:])) for name, runs in found.items() if name not in _AROUND}
    whole = calls.pop(_WHOLE)
    named = {name: taken for name, taken in calls.items() if max(_shares(taken, whole)) >= least}
    others = (
        whole[0] - sum(taken[0] for taken in named.values()),
        whole[1] - sum(taken[1] for taken in named.values()),
    )
    rows = sorted(named.items(), key=lambda row: -row[1][0])
    head = ["| operator | a prompt, ms | of it | a step, ms | of it |", "|---|---|---|---|---|"]
    return head + [_row(name, taken, whole) for name, taken in (("all", whole), *rows, ("others", others))]


def _shares(taken: tuple[float, float], whole: tuple[float, float]) -> tuple[float, float]:
    return taken[0] / whole[0], taken[1] / whole[1]


def _row(name: str, taken: tuple[float, float], whole: tuple[float, float]) -> str:
    prompt, step = _shares(taken, whole)
    return f"| {name} | {taken[0]:.1f} | {prompt:.1%} | {taken[1]:.2f} | {step:.1%} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--adapter")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--least", type=float, default=0.01, help="share of a call below which operators are summed")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        trace = record(options.bundle, options.adapter, options.prompt, options.steps, options.threads, Path(work))
        print("\n".join(table(by_operator(trace), options.least)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
