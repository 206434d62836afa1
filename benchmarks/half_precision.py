"""What XNNPACK's linear layers cost in float16 beside float32: a single token, and a prompt.

    python benchmarks/half_precision.py [--tokens 1 128] [--rounds 15]

Twenty-four linear layers of SmolLM2's MLP (576 and 1,536 features), lowered by ExecuTorch, called in turn with
`OMP_NUM_THREADS` as it is. Milliseconds of wall time: the least and the median. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

_NARROW, _WIDE, _LAYERS = 576, 1536, 24


def lowered(dtype: Any, tokens: int) -> tuple[Any, Any]:
    """Return a program's bytes and an input for it."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    torch.manual_seed(0)
    sizes = [(_NARROW, _WIDE) if index % 2 == 0 else (_WIDE, _NARROW) for index in range(_LAYERS)]
    layers = torch.nn.Sequential(*(torch.nn.Linear(*size, bias=False) for size in sizes)).to(dtype).eval()
    inputs = torch.randn(1, tokens, _NARROW).to(dtype) * 0.1
    edge = to_edge_transform_and_lower(torch.export.export(layers, (inputs,)), partitioner=[XnnpackPartitioner()])
    return edge.to_executorch().buffer, inputs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(argv)
    import torch
    from lora_core_xnnpack.runtime.library import load_runtime

    runtime = load_runtime()
    print("| tokens | float32, ms | float16, ms | of it |\n|---|---|---|---|")
    for tokens in options.tokens:
        made = [lowered(dtype, tokens) for dtype in (torch.float32, torch.float16)]  # modules do not keep the bytes
        modules = [(runtime._load_for_executorch_from_buffer(program), inputs) for program, inputs in made]
        took: list[list[float]] = [[], []]
        for _ in range(options.rounds):
            for index, (module, inputs) in enumerate(modules):
                start = time.perf_counter()
                module.forward((inputs,))
                took[index].append(1e3 * (time.perf_counter() - start))
        (full, half), least = (map(median, took)), [min(each) for each in took]
        print(f"| {tokens} | {least[0]:.2f} ({full:.2f}) | {least[1]:.2f} ({half:.2f}) | {least[1] / least[0]:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
