"""What XNNPACK's linear layers cost with weights in float16 and int8 beside float32: a single token, and a prompt.

    python benchmarks/half_precision.py [--tokens 1 128] [--rounds 15]

Twenty-four linear layers of SmolLM2's MLP (576 and 1,536 features), their weights as the policies `fp32`, `fp16` and
`c8w` have them and everything between in float32, called in turn with `OMP_NUM_THREADS` as it is. Milliseconds of wall
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
_POLICIES = ("fp32", "fp16", "c8w")


def lowered(tokens: int, policy: str) -> tuple[Any, Any]:
    """Return a program's bytes and an input for it."""
    import torch
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from lora_core_xnnpack.lowering.float_conversions import write_conversions
    from lora_core_xnnpack.lowering.lowering import _partitioner
    from lora_core_xnnpack.quant import quantized_layer

    from lora_core.hub import PluginHub

    torch.manual_seed(0)
    sizes = [(_NARROW, _WIDE) if index % 2 == 0 else (_WIDE, _NARROW) for index in range(_LAYERS)]
    layers: list[Any] = [torch.nn.Linear(*size, bias=False) for size in sizes]
    scheme = PluginHub().policies[policy].linear
    if scheme is not None:
        layers = [quantized_layer(layer.weight.detach(), "linear", scheme, scale_search="affine") for layer in layers]
    inputs = torch.randn(1, tokens, _NARROW)
    with ExitStack() as stack:
        write_conversions(stack)
        edge = to_edge_transform_and_lower(
            torch.export.export(torch.nn.Sequential(*layers).eval(), (inputs,)),
            partitioner=[_partitioner()],
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
    print(f"| tokens | {' | '.join(_POLICIES)} |\n|---|{'---|' * len(_POLICIES)}")
    for tokens in options.tokens:
        made = [lowered(tokens, policy) for policy in _POLICIES]  # modules do not keep the bytes
        modules = [(runtime._load_for_executorch_from_buffer(program), inputs) for program, inputs in made]
        took: list[list[float]] = [[] for _ in modules]
        for _ in range(options.rounds):
            for index, (module, inputs) in enumerate(modules):
                start = time.perf_counter()
                module.forward((inputs,))
                took[index].append(1e3 * (time.perf_counter() - start))
        print(f"| {tokens} | {' | '.join(f'{min(each):.2f} ({median(each):.2f})' for each in took)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
