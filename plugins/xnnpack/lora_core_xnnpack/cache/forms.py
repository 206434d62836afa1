"""Which stored bytes come from which tensor of the base: what makes a lowered program independent of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.pte import Buffer
from lora_core_xnnpack.lowering.fast.nibbles import packed

if TYPE_CHECKING:
    import torch

    from lora_core_xnnpack.lowering.known import KnownTensors

# Parts of torchao's `IntxUnpackedToInt8Tensor`, and how XNNPACK's serializer may store each.
_QUANTIZED_PARTS = {"qdata": ("raw", "int4"), "scale": ("raw", "bfloat16"), "zero_point": ("raw",)}


@attrs.frozen(kw_only=True, order=True)
class Form:
    """A tensor of the module (`path`), a `part` of it if it is quantized ("" if not), and how it is stored."""

    path: str
    part: str
    transform: str


def forms(module: torch.nn.Module) -> Iterator[Form]:
    """Yield every form in which a parameter or buffer of `module` could be stored, in module order."""
    import torch

    for path, tensor in named_tensors(module):
        if hasattr(tensor, "qdata"):
            wide = getattr(tensor, "target_dtype", None) == torch.int8
            for part, transforms in _QUANTIZED_PARTS.items():
                if getattr(tensor, part, None) is not None:
                    chosen = [each for each in transforms if not (wide and each == "int4")]
                    yield from (Form(path=path, part=part, transform=transform) for transform in chosen)
        else:
            yield Form(path=path, part="", transform="raw")


def stored(tensor: Any, form: Form) -> Buffer:
    """Return the bytes of `tensor`, the one at the path of `form`, as `form` says; of some rows, those rows' bytes."""
    import torch

    made = _made(_part(tensor, form), form.transform)
    made = made.view(torch.uint16) if made.dtype == torch.bfloat16 else made
    return memoryview(made.contiguous().numpy().reshape(-1)).cast("B")


def _part(tensor: Any, form: Form) -> torch.Tensor:
    part: torch.Tensor = getattr(tensor, form.part) if form.part else tensor
    return part.detach()


def _made(part: torch.Tensor, transform: str) -> torch.Tensor:
    import torch

    if transform == "int4":
        made: torch.Tensor = packed(part)  # ExecuTorch 1.5.1, `NodeVisitor.convert_to_qc4w`
        return made
    return part.to(torch.bfloat16) if transform == "bfloat16" else part


def forms_by_digest(
    module: torch.nn.Module, sizes: Collection[int], held: KnownTensors | None = None
) -> dict[str, list[Form]]:
    """Return the forms whose bytes are of one of `sizes`, under the SHA-256 of these; several where tensors are equal.

    What is `held` of the tensors, and was made of them there, is not hashed again.
    """
    found: dict[str, list[Form]] = {}
    tensors = dict(named_tensors(module))
    for form in forms(module):
        tensor = tensors[form.path]
        part = _part(tensor, form)
        if form.transform == "int4" and part.shape[-1] % 2:
            continue
        if _size(part, form.transform) in sizes:
            found.setdefault(_sha256(tensor, form, held), []).append(form)
    return found


def _size(part: torch.Tensor, transform: str) -> int:
    """Return the bytes of what is made of `part`."""
    if transform == "int4":
        return int(part.numel()) // 2
    return int(part.numel()) * (2 if transform == "bfloat16" else int(part.element_size()))


def _sha256(tensor: Any, form: Form, held: KnownTensors | None) -> str:
    if held is not None:
        made = held.made(_part(tensor, form), form.transform, lambda part: _made(part, form.transform))
        known = held.bytes_of(made)
        if known is not None:
            return str(known.hash.hexdigest())
    return hashlib.sha256(stored(tensor, form)).hexdigest()


def same_storage(module: torch.nn.Module, first: Form, second: Form) -> bool:
    """Say whether two forms are views of one tensor (tied weights), and so equal for every base."""
    tensors = dict(named_tensors(module))
    if first.part or second.part:
        return first == second
    return bool(tensors[first.path].data_ptr() == tensors[second.path].data_ptr())


def named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every parameter and buffer with its path; tied ones under each of their paths."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
