"""Searches for scales that take torchao's place, with the same scales on every processor.

torchao 0.18's half-quadratic search (HQQ, `_choose_qparams_and_quantize_scale_only_hqq` of `quant_primitives.py`) fits
the scale of each group by least squares, `s = sum(w q) / sum(q q)`, and sums in float32, in an order that follows the
width of the vector registers: another order, another last bit of a scale. The same search is made here with sums that
have no order: weights are brought to integers so small that every partial sum is an exact double.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_core.quant.fitting import Grid, bfloat16, fitted
from lora_core_xnnpack.lowering.fast.patching import Patches

if TYPE_CHECKING:
    import torch

_ROUNDS = 20
_TOLERANCE = 1e-5
_ROOM = 53  # bits of a double's integers
_CHUNK = 1 << 20  # weights that are summed at a time


@contextlib.contextmanager
def searching(scale_search: str) -> Iterator[None]:
    """Let torchao's HQQ be `search`, or `fit` for the scale search `fitted`, inside of the block.

    torchao takes no scales of a caller's through `quantize_`; drop when it does, or when it sums exactly.
    """
    from torchao.quantization.quantize_.workflows.intx import intx_unpacked_to_int8_tensor as torchao

    found: Callable[..., object] = fit if scale_search == "fitted" else search
    with contextlib.ExitStack() as stack:
        Patches(stack).replace(torchao, "_choose_qparams_and_quantize_scale_only_hqq", found)
        yield


def fit(weight: torch.Tensor, block_size: Sequence[int], qmin: int, qmax: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return integers, int8, and scales as `search` does, each group for itself: some rows give what they give in the
    whole.

    Scales are those that bfloat16 holds, in which XNNPACK stores the scales of groups.
    """
    import torch

    grid = Grid(lowest=qmin, highest=qmax, group=block_size[1], narrow=bfloat16)
    integers, scales = fitted(weight.detach().float().numpy(), grid)
    return torch.from_numpy(integers), torch.from_numpy(scales).to(weight.dtype)


def search(weight: torch.Tensor, block_size: Sequence[int], qmin: int, qmax: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the integers of `weight` (out, in), int32, and a scale for each group of `block_size[1]` inputs.

    Scales have shape (out, groups). Integers lie in `qmin` to `qmax`, at most 2^7 in magnitude. Beside the weight and
    the result only some rows are in memory.
    """
    import torch

    groups = weight.float().contiguous().view(len(weight), -1, block_size[1])
    smallest = torch.finfo(torch.float32).eps
    largest = torch.cat([rows.abs().amax(dim=2) for rows in groups.split(_step(groups))])
    scale = (largest / max(abs(qmin), abs(qmax))).clamp_min(smallest)
    for _ in range(_ROUNDS):
        before = scale
        scale = _least_squares(groups, before, qmin, qmax).clamp_min(smallest)
        if ((scale - before).abs() / before.clamp_min(smallest)).max() < _TOLERANCE:
            break
    parts = zip(groups.split(_step(groups)), scale.split(_step(groups)), strict=True)
    found = torch.cat([_integers(rows, scales, qmin, qmax).to(torch.int32) for rows, scales in parts])
    return found.view(weight.shape), scale.to(weight.dtype)


def _step(groups: torch.Tensor) -> int:
    """Return how many rows are looked at together."""
    return max(1, _CHUNK // int(groups[0].numel()))


def _integers(groups: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    return (groups / scale.unsqueeze(-1)).round_().clamp_(qmin, qmax)


def _least_squares(groups: torch.Tensor, before: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    """Return the scales that fit the integers that the scales `before` give; a group of zeros keeps its scale."""
    import torch

    step = _step(groups)
    return torch.cat(
        [
            _fitted(rows, scale, _integers(rows, scale, qmin, qmax).double())
            for rows, scale in zip(groups.split(step), before.split(step), strict=True)
        ]
    )


def _fitted(rows: torch.Tensor, before: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
    import torch

    # |w| < 2^exponent, |q| <= 2^7, and as many products as a group has weights.
    bits = _ROOM - 7 - math.ceil(math.log2(rows.shape[2]))
    exponent = torch.frexp(rows.abs().amax(dim=2)).exponent.numpy()
    unit, inverse = (torch.from_numpy(np.ldexp(1.0, sign * (exponent - bits))) for sign in (1, -1))
    whole = rows.double().mul_(inverse.unsqueeze(-1)).round_()
    products, squares = whole.mul_(integers).sum(dim=2), integers.square_().sum(dim=2)
    return torch.where(squares > 0, (products / squares * unit).float(), before)
