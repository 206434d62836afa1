"""Stand-in weights: random values of the base's shapes, by which a lowered constant tells which tensor it is.

The rows of a matrix are one row, so that it takes no memory. A tensor whose values are all one keeps them: coremltools
leaves out a multiplication by ones or an addition of zeros.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is only imported to lower a model

from lora_core_coreml.weightless.forms import is_uniform, plain_tensors

# Values that no two tensors have in common by chance.
_TELLING = 16


class StandIns:
    """Draws stand-ins: copies of modules have other values each, shared parts stay shared."""

    def __init__(self) -> None:
        self._memo: dict[int, Any] = {}
        self._drawn = 0
        self._kept: list[object] = []

    def copy(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return a copy of the structure of `module` with stand-ins as parameters; buffers are shared."""
        # `deepcopy` takes what is in its memo instead of copying it.
        memo = {**self._memo, **{id(buffer): buffer for buffer in module.buffers()}}
        places: dict[tuple[int, int], torch.Tensor] = {}
        for parameter in module.parameters():
            self._drawn += 1
            stand_in = _quantized(parameter, self._drawn) if hasattr(parameter, "qdata") else None
            memo[id(parameter)] = torch.nn.Parameter(
                _plain(parameter, self._drawn, places) if stand_in is None else stand_in, requires_grad=False
            )
            self._kept.append(parameter)  # an id is only unique for as long as its object is there
        made = copy.deepcopy(module, memo)
        self._memo = self._memo or memo
        return made


def with_stand_ins(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of the structure of `module` with stand-ins as parameters; buffers are shared."""
    return StandIns().copy(module)


def what_stays(module: torch.nn.Module) -> Mapping[str, object]:
    """Return what a program that is lowered with stand-ins has of `module`: shapes, uniform values, buffers."""
    tensors: dict[str, object] = {}
    for path, part, tensor in plain_tensors(module):
        value = _digest(tensor) if is_uniform(tensor) else ""
        tensors[f"{path} {part}"] = [list(tensor.shape), str(tensor.dtype), value]
    for path, buffer in module.named_buffers(remove_duplicate=False):
        tensors[path] = [list(buffer.shape), str(buffer.dtype), _digest(buffer)]
    return tensors


def _plain(tensor: torch.Tensor, number: int, drawn: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    """Return the stand-in of a tensor; tensors that share their memory (a tied head) share it too."""
    place = (tensor.data_ptr(), tensor.numel())
    if place not in drawn:
        drawn[place] = _drawn(tensor.detach(), (number,))
    return drawn[place].view(tensor.shape)


def _quantized(tensor: Any, number: int) -> torch.Tensor:
    bits = {getattr(torch, f"int{bits}"): bits for bits in range(1, 9)}[tensor.target_dtype]
    parts = {
        "qdata": _drawn(tensor.qdata, (number, 0), bits),
        "scale": _drawn(tensor.scale, (number, 1)),
        "zero_point": _drawn(tensor.zero_point, (number, 2), bits),
    }
    fields = {name: getattr(tensor, name) for name in tensor.tensor_attribute_names}
    made: torch.Tensor = type(tensor)(**parts, **fields)
    return made


def _drawn(tensor: torch.Tensor, seed: tuple[int, ...], bits: int = 8) -> torch.Tensor:
    """Return random values of the shape and type of `tensor`, one row for all if it is long enough to tell; those of
    `tensor` if they are all one.
    """
    if is_uniform(tensor):
        return tensor.contiguous()
    if tensor.dim() > 1 and tensor[0].numel() >= _TELLING and len(tensor) > 1:
        return _random(tensor[:1], seed, bits).expand(tensor.shape)
    return _random(tensor, seed, bits)


def _random(tensor: torch.Tensor, seed: tuple[int, ...], bits: int) -> torch.Tensor:
    random = np.random.default_rng((*seed, 0x5EED))
    raw = torch.frombuffer(bytearray(random.bytes(tensor.numel() * tensor.element_size())), dtype=torch.uint8)
    if tensor.dtype == torch.int8:
        return ((raw & ((1 << bits) - 1)).to(torch.int16) - (1 << bits - 1)).to(torch.int8).view(tensor.shape)
    # A sign, the exponent of 1, and random digits: between 1 and 2, and -2 and -1.
    if tensor.dtype == torch.float32:
        drawn = raw.view(torch.int32) & -0x7F800001 | 0x3F800000
    elif tensor.dtype == torch.float16:
        drawn = raw.view(torch.int16) & -0x7C01 | 0x3C00
    else:
        return tensor
    return drawn.view(tensor.dtype).view(tensor.shape)


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().contiguous().view(-1)
    flat = flat.view(torch.uint8) if flat.numel() else flat
    return hashlib.sha256(flat.numpy()).hexdigest()
