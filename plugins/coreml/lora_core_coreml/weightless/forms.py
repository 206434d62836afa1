"""In which forms a tensor of the module that is lowered can be stored: what tells where a constant comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Protocol

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
        for part, tensor in parts_of(parameter).items():
            yield path, part, tensor.detach()


def parts_of(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a parameter is stored as: itself under "", or the parts of a quantized one."""
    if not hasattr(parameter, "qdata"):
        return {"": parameter}
    return {part: getattr(parameter, part) for part in _QUANTIZED_PARTS}


def is_uniform(tensor: torch.Tensor) -> bool:
    """Say whether all values are one, by which coremltools may simplify what is done with them."""
    if not tensor.numel():
        return True
    for axis, stride in enumerate(tensor.stride()):
        if stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    first = tensor[(0,) * tensor.dim()]
    # Most tensors tell by a few values.
    few = tensor[(slice(0, 2),) * tensor.dim()]
    return bool((few == first).all()) and bool((tensor == first).all())


class Weights(Protocol):
    """The weights of a base, in the forms in which they are stored."""

    def size(self, form: TensorForm) -> int:
        """Return how many bytes a tensor in `form` has."""
        ...

    def pieces(self, form: TensorForm) -> Iterator[Buffer]:
        """Yield the bytes of a tensor in `form`, some at a time."""
        ...


@attrs.frozen
class HeldWeights:
    """The `Weights` of a module that is in memory."""

    module: torch.nn.Module

    def size(self, form: TensorForm) -> int:
        """Return how many bytes a tensor in `form` has."""
        return form_size(parts_of(self._parameter(form))[form.part], form)

    def pieces(self, form: TensorForm) -> Iterator[Buffer]:
        """Yield the bytes of a tensor in `form`."""
        yield form_bytes(parts_of(self._parameter(form))[form.part], form)

    def _parameter(self, form: TensorForm) -> torch.Tensor:
        parent, _, name = form.path.rpartition(".")
        parameter: torch.Tensor = self.module.get_submodule(parent)._parameters[name]
        return parameter


def form_size(tensor: torch.Tensor, form: TensorForm) -> int:
    """Return how many bytes `tensor` has in `form`."""
    size: int = tensor.numel() // 2 if form.transform == "int4" else tensor.numel() * tensor.element_size()
    return size


def form_bytes(tensor: torch.Tensor, form: TensorForm) -> Buffer:
    """Return the bytes of a tensor, or of some of its rows, in `form`; of 4 bits, an even number of values."""
    return _bytes(tensor, form.transform)


@attrs.frozen(slots=False)
class KnownForms:
    """The forms of a module's tensors, which are not uniform, by SHA-256.

    Of tensors that share their memory, which are equal for every base, the first stands for all.
    """

    module: torch.nn.Module

    @cached_property
    def by_row(self) -> Mapping[str, TensorForm]:
        """Forms by the digest of their bytes, or of one row for tensors that repeat it."""
        return _by_digest(self.module, whole=False)

    @cached_property
    def by_bytes(self) -> Mapping[str, TensorForm]:
        """Forms of tensors that repeat a row, by the digest of all their bytes: packed types are written whole."""
        return _by_digest(self.module, whole=True)


def _repeats_rows(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is a view of one row."""
    return tensor.dim() > 1 and len(tensor) > 1 and tensor.stride(0) == 0 and 0 not in tensor.stride()[1:]


def _by_digest(module: torch.nn.Module, *, whole: bool) -> dict[str, TensorForm]:
    found: dict[str, TensorForm] = {}
    for path, part, tensor in plain_tensors(module):
        if is_uniform(tensor):
            continue
        if _repeats_rows(tensor):
            tensor = tensor if whole else tensor[:1]
        elif whole:
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
