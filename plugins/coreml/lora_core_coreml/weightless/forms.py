"""In which forms a tensor of the module that is lowered can be stored: what tells where a constant comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import attrs
import torch  # noqa: TID253 - this module is only imported to lower a model

from lora_core.pte import Buffer

# Parts of torchao's `IntxUnpackedToInt8Tensor`, and how coremltools stores each.
_QUANTIZED_PARTS = {"qdata": ("raw", "int4"), "scale": ("raw",), "zero_point": ("raw",)}


@attrs.frozen(kw_only=True, order=True)
class TensorForm:
    """A tensor of the module (`path`), a `part` of it if it is quantized ("" if not), and how it is stored."""

    path: str
    part: str = ""
    transform: str = "raw"


def plain_tensors(module: torch.nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield (path, part, tensor) of every parameter of `module`: of a quantized one its parts."""
    for path, parameter in module.named_parameters(remove_duplicate=False):
        if not hasattr(parameter, "qdata"):
            yield path, "", parameter.detach()
            continue
        for part in _QUANTIZED_PARTS:
            yield path, part, getattr(parameter, part).detach()


def is_uniform(tensor: torch.Tensor) -> bool:
    """Say whether all values are one, by which coremltools may simplify what is done with them."""
    return bool((tensor == tensor.reshape(-1)[0]).all()) if tensor.numel() else True


def stored_bytes(module: torch.nn.Module, form: TensorForm) -> Buffer:
    """Return the bytes of a tensor in `form`; raises `KeyError` or `AttributeError` if the module has none such."""
    parent, _, name = form.path.rpartition(".")
    tensor: Any = module.get_submodule(parent)._parameters[name]
    return _bytes(getattr(tensor, form.part) if form.part else tensor, form.transform)


def forms_by_digest(module: torch.nn.Module) -> dict[str, TensorForm]:
    """Return the form under the SHA-256 of its bytes, of every tensor that is not uniform.

    Of tensors that share their memory, which are equal for every base, the first stands for all.
    """
    found: dict[str, TensorForm] = {}
    for path, part, tensor in plain_tensors(module):
        if is_uniform(tensor):
            continue
        for transform in _QUANTIZED_PARTS.get(part, ("raw",)):
            if transform == "int4" and tensor.numel() % 2:
                continue
            digest = hashlib.sha256(_bytes(tensor, transform)).hexdigest()
            found.setdefault(digest, TensorForm(path=path, part=part, transform=transform))
    return found


def _bytes(tensor: torch.Tensor, transform: str) -> Buffer:
    flat = tensor.detach().contiguous().view(-1)
    if transform == "int4":
        # MIL stores two four-bit values in a byte, the first in the low half.
        nibbles = flat.to(torch.uint8) & 15
        flat = nibbles[1::2] << 4 | nibbles[::2]
    if flat.dtype == torch.bfloat16:
        flat = flat.view(torch.uint16)
    return memoryview(flat.numpy()).cast("B")
