"""Adapters of one program: from matrices to methods, and from a program's methods back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.errors import BundleError
from lora_core_xnnpack.files.data_file import DataBlob
from lora_core_xnnpack.files.named_blobs import Buffer
from lora_core_xnnpack.files.program import PackedMethod, ProgramParts
from lora_core_xnnpack.multimethod.relocations import Template
from lora_core_xnnpack.slot_tensors import KEY_LENGTH
from lora_core_xnnpack.split.rewriting import Matrix, slot_matrices

BASE_METHOD = "forward"


def tensor_blob(matrix: Matrix) -> DataBlob:
    """Return a LoRA matrix as ExecuTorch stores it, under the key that it gives it."""
    return DataBlob.under_content_key(np.ascontiguousarray(matrix, dtype="<f4").data.cast("B"))


@attrs.frozen(kw_only=True)
class Resident:
    """An adapter in a program: the slot plan it uses, the key of each of that plan's tensors, and their bytes by key.

    A tensor that the foundation holds has no bytes here.
    """

    name: str
    plan: int
    keys: tuple[str, ...]
    data: Mapping[str, Buffer]

    @classmethod
    def of_adapter(cls, adapter: Adapter, plan: int, slots: SlotPlan, template: Template) -> Resident:
        """Return `adapter`, which must fit `slots`, at the ranks of the template, scaling folded into B."""
        matrices = slot_matrices(adapter, slots)
        blobs = []
        for tensor in template.table.plans[plan].tensors:
            matrix = matrices[tensor.module][0 if tensor.matrix == "a" else 1]
            if matrix.shape != tensor.shape:
                raise ValueError(f"{tensor.module} {tensor.matrix} is {matrix.shape}, the template has {tensor.shape}")
            blobs.append(tensor_blob(matrix))
        known = set(template.table.foundation_keys)
        return cls(
            name=adapter.name,
            plan=plan,
            keys=tuple(blob.key for blob in blobs),
            data={blob.key: blob.data for blob in blobs if blob.key not in known},
        )

    @classmethod
    def of_program(cls, name: str, plan: int, program: ProgramParts, template: Template, path: Path) -> Resident:
        """Read the adapter `name` back from `program`, the file at `path`; raises `BundleError` if it is damaged."""
        known = set(template.table.foundation_keys)
        try:
            payloads = program.methods[name].payloads
            sites = [tensor.sites[0] for tensor in template.table.plans[plan].tensors]
            keys = [bytes(payloads[site.payload][site.offset :][:KEY_LENGTH]).decode("ascii") for site in sites]
            data = {key: program.named[key] for key in keys if key not in known}
        except (KeyError, IndexError, UnicodeDecodeError) as error:
            raise _damaged(name, path) from error
        if any(hashlib.sha256(blob).hexdigest() != key for key, blob in data.items()):
            raise _damaged(name, path)
        return cls(name=name, plan=plan, keys=tuple(keys), data=data)

    def method(self, template: Template) -> PackedMethod:
        """Return the template's method with this adapter's keys."""
        method = template.method(self.plan)
        payloads = [bytearray(payload) for payload in method.payloads]
        for tensor, key in zip(template.table.plans[self.plan].tensors, self.keys, strict=True):
            for site in tensor.sites:
                payloads[site.payload][site.offset : site.offset + KEY_LENGTH] = key.encode("ascii")
        return PackedMethod(source=method.source, payloads=tuple(bytes(payload) for payload in payloads))


def _damaged(name: str, path: Path) -> BundleError:
    return BundleError(
        f"{path.name} does not hold adapter {name!r} as it was linked: a tensor is missing or changed.",
        where=str(path),
        remedy="Export the bundle again, or restore the file from a copy.",
    )


def link_program(template: Template, residents: Sequence[Resident]) -> list[Buffer]:
    """Return the program with the base and all `residents`: what lowering all its methods together would have given.

    The order of `residents` has no meaning.
    """
    ordered = sorted(residents, key=lambda resident: resident.name)
    methods = {resident.name: resident.method(template) for resident in ordered}
    blobs: dict[str, Buffer] = {}
    for resident in ordered:
        for key in resident.keys:
            if key in resident.data:
                blobs.setdefault(key, resident.data[key])
    named = [DataBlob(key=key, data=data, digest=key) for key, data in blobs.items()]
    return template.program.assemble({BASE_METHOD: template.program.methods[BASE_METHOD], **methods}, named)
