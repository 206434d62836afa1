"""What XNNPACK's linear layers cost with float16 weights beside float32: a single token, and a prompt.

    python benchmarks/half_precision.py [--tokens 1 128] [--rounds 15]

Twenty-four linear layers of SmolLM2's MLP (576 and 1,536 features), lowered by ExecuTorch, called in turn with
`OMP_NUM_THREADS` as it is; between float16 ones everything is float32, as in the policy `fp16`. Milliseconds of wall
time: the least and the median. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

_NARROW, _WIDE, _LAYERS = 576, 1536, 24


def lowered(tokens: int, *, half: bool) -> tuple[Any, Any]:
    """Return a program's bytes and an input for it."""
    import torch
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from lora_core_xnnpack.lowering.float_conversions import FloatConversionConfig, write_conversions
    from lora_core_xnnpack.lowering.half_layers import HalfLinear

    torch.manual_seed(0)
    sizes = [(_NARROW, _WIDE) if index % 2 == 0 else (_WIDE, _NARROW) for index in range(_LAYERS)]
    layers = [torch.nn.Linear(*size, bias=False) for size in sizes]
    module = torch.nn.Sequential(*(HalfLinear(each.weight) if half else each for each in layers)).eval()
    inputs = torch.randn(1, tokens, _NARROW)
    with ExitStack() as stack:
        write_conversions(stack)
        edge = to_edge_transform_and_lower(
            torch.export.export(module, (inputs,)),
            partitioner=[XnnpackPartitioner(configs=[*ALL_PARTITIONER_CONFIGS, FloatConversionConfig])],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
    return edge.to_executorch().buffer, inputs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(argv)
    from lora_core_xnnpack.runtime.library import load_runtime

    runtime = load_runtime()
    print("| tokens | float32, ms | float16, ms | of it |\n|---|---|---|---|")
    for tokens in options.tokens:
        made = [lowered(tokens, half=half) for half in (False, True)]  # modules do not keep the bytes
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
