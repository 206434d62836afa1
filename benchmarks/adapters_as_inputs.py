"""What adapters cost on XNNPACK as inputs of a program, beside constants, in the linear layers alone.

    python benchmarks/adapters_as_inputs.py [--layers 4] [--rank 8] [--all-linear] [--policy 8da4w] [--rounds 21]

Blocks of SmolLM2-135M's shape with random weights, attention itself left out: seven linear layers, gate and residuals.
LoRA is on q and v (or on all seven), and is left out, a constant, or an input of the program, which XNNPACK multiplies
by as it does by any matrix that is not constant: within its delegates, as `--lora inputs` lowers them, or, with
`portable`, as ExecuTorch's own partitioner leaves them. One thread; CPU milliseconds of a call for one token and for
128, medians of rounds taken in turn, and what LoRA adds to the blocks alone.
"""

from __future__ import annotations

import argparse
import itertools
import time
from statistics import median
from typing import Any

import torch

DIM, KV_DIM, INNER = 576, 192, 1536
SIZES = {
    "q": (DIM, DIM),
    "k": (DIM, KV_DIM),
    "v": (DIM, KV_DIM),
    "o": (DIM, DIM),
    "gate": (DIM, INNER),
    "up": (DIM, INNER),
    "down": (INNER, DIM),
}
MODES = ("alone", "constants", "inputs", "portable")
CALLS = {1: 30, 128: 3}
"""Calls that are timed together, by their tokens."""


class Layer(torch.nn.Module):
    """A linear layer, with LoRA as `mode` says; `lora` are A and B where they are inputs."""

    def __init__(self, sizes: tuple[int, int], rank: int, mode: str) -> None:
        super().__init__()
        self.base = torch.nn.Linear(*sizes, bias=False)
        self.mode = mode if rank else "alone"
        if self.mode == "constants":
            self.a = torch.nn.Linear(sizes[0], rank, bias=False)
            self.b = torch.nn.Linear(rank, sizes[1], bias=False)

    def forward(self, x: Any, lora: Any) -> Any:
        out = self.base(x)
        if self.mode == "constants":
            return out + self.b(self.a(x))
        if self.mode in ("inputs", "portable"):
            a, b = next(lora), next(lora)
            return out + torch.nn.functional.linear(torch.nn.functional.linear(x, a), b)
        return out


class Blocks(torch.nn.Module):
    """Blocks of a decoder without attention: every head sees its own token."""

    def __init__(self, layers: int, rank: int, targets: tuple[str, ...], mode: str) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {name: Layer(sizes, rank if name in targets else 0, mode) for name, sizes in SIZES.items()}
            )
            for _ in range(layers)
        )

    def forward(self, x: Any, *lora: Any) -> Any:
        left = iter(lora)
        for block in self.blocks:
            q, k, v = (block[name](x, left) for name in "qkv")
            mixed = q * torch.cat([k] * (DIM // KV_DIM), -1) + torch.cat([v] * (DIM // KV_DIM), -1)
            x = x + block["o"](torch.tanh(mixed), left)
            inner = torch.nn.functional.silu(block["gate"](x, left)) * block["up"](x, left)
            x = x + block["down"](inner, left)
        return x


def lowered(chosen: argparse.Namespace, mode: str, tokens: int) -> tuple[Any, list[Any], bytes]:
    """Return a program, loaded, its inputs and its bytes; fails if what it computes is not what torch does."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer
    from lora_core_xnnpack.lowering.slot_inputs import taking_inputs
    from lora_core_xnnpack.quant import quantize_linear

    from lora_core.quant.policy import Scheme

    torch.manual_seed(0)
    targets = tuple(SIZES) if chosen.all_linear else ("q", "v")
    module = Blocks(chosen.layers, chosen.rank, targets, mode).eval()
    if chosen.policy == "8da4w":
        scheme = Scheme(bits=4, granularity="group", group_size=32, activations="int8_dynamic")
        paths = {f"blocks.{index}.{name}.base" for index, name in itertools.product(range(chosen.layers), SIZES)}
        quantize_linear(module, scheme, paths, searched=False)
    inputs = [torch.randn(1, tokens, DIM)]
    if mode in ("inputs", "portable"):
        for name in [name for _ in range(chosen.layers) for name in SIZES if name in targets]:
            width, out = SIZES[name]
            inputs += [torch.randn(chosen.rank, width) * 0.05, torch.randn(out, chosen.rank) * 0.05]
    with torch.no_grad():
        program = torch.export.export(module, tuple(inputs), strict=True)
        configs = taking_inputs(ALL_PARTITIONER_CONFIGS) if mode == "inputs" else None
        partitioner = XnnpackPartitioner(configs=configs)
        edge = to_edge_transform_and_lower(program, partitioner=[partitioner])
        wanted = module(*inputs)
    # The runtime reads the buffer for as long as the program lives.
    buffer = edge.to_executorch().buffer
    made = _load_for_executorch_from_buffer(buffer)
    apart = float((made.forward(inputs)[0] - wanted).abs().max() / wanted.abs().max())
    # Activations are quantized on their own grids here and there.
    if apart > (0.05 if chosen.policy == "8da4w" else 1e-4):
        raise SystemExit(f"{mode}: the program is {apart:.1e} from torch")
    return made, inputs, buffer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--all-linear", action="store_true")
    parser.add_argument("--policy", choices=("fp32", "8da4w"), default="fp32")
    parser.add_argument("--rounds", type=int, default=21)
    chosen = parser.parse_args()
    from executorch.extension.pybindings import portable_lib

    torch.set_num_threads(1)
    portable_lib._unsafe_reset_threadpool(1)
    print("| tokens | " + " | ".join(MODES) + " |\n|---|---|---|---|---|", flush=True)
    for tokens, calls in CALLS.items():
        programs = {mode: lowered(chosen, mode, tokens) for mode in MODES}
        took: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(chosen.rounds):
            for mode, (program, inputs, _) in programs.items():
                start = time.process_time()
                for _ in range(calls):
                    program.forward(inputs)
                took[mode].append(1000 * (time.process_time() - start) / calls)
        alone = median(took["alone"])
        cells = [f"{median(took[mode]):.2f} ms ({median(took[mode]) / alone - 1:+.1%})" for mode in MODES[1:]]
        print(f"| {tokens} | {alone:.2f} ms | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
