"""Which stored bytes come from which tensor of the base: what makes a lowered program independent of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.pte import Buffer
from lora_core_xnnpack.lowering.fast.nibbles import packed

if TYPE_CHECKING:
    import torch

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

    tensor = getattr(tensor, form.part).detach() if form.part else tensor.detach()
    if form.transform == "int4":
        tensor = packed(tensor)  # ExecuTorch 1.5.1, `NodeVisitor.convert_to_qc4w`
    elif form.transform == "bfloat16":
        tensor = tensor.to(torch.bfloat16).view(torch.uint16)
    elif tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return memoryview(tensor.contiguous().numpy().reshape(-1)).cast("B")


def forms_by_digest(module: torch.nn.Module) -> dict[str, list[Form]]:
    """Return the forms under the SHA-256 of their bytes; several where tensors are equal."""
    found: dict[str, list[Form]] = {}
    tensors = dict(named_tensors(module))
    for form in forms(module):
        tensor = tensors[form.path]
        if form.transform == "int4" and getattr(tensor, form.part).shape[-1] % 2:
            continue
        found.setdefault(hashlib.sha256(stored(tensor, form)).hexdigest(), []).append(form)
    return found


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
