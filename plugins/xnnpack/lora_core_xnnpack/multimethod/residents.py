"""Adapters of one program: from values to methods, and from a program's methods back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.errors import BundleError
from lora_core.pte import Buffer
from lora_core_xnnpack.files.data_file import DataBlob
from lora_core_xnnpack.files.marks import program_marks
from lora_core_xnnpack.files.program import PackedMethod, ProgramParts
from lora_core_xnnpack.multimethod.relocations import MultimethodTemplate
from lora_core_xnnpack.slot_tensors import KEY_LENGTH, linkable_values

BASE_METHOD = "forward"


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
    def of_adapter(cls, adapter: PlacedAdapter, template: MultimethodTemplate) -> Resident:
        """Return `adapter` at the ranks of the template, scaling folded in."""
        values = linkable_values(adapter)
        blobs = [tensor.blob(values) for tensor in template.table.plans[adapter.index].tensors]
        known = set(template.table.foundation_keys)
        return cls(
            name=adapter.name,
            plan=adapter.index,
            keys=tuple(blob.key for blob in blobs),
            data={blob.key: blob.data for blob in blobs if blob.key not in known},
        )

    @classmethod
    def of_program(
        cls, name: str, plan: int, program: ProgramParts, template: MultimethodTemplate, path: Path
    ) -> Resident:
        """Read the adapter `name` back from `program`, the file at `path`; raises `BundleError` if it is damaged."""
        known = set(template.table.foundation_keys)
        try:
            payloads = program.methods[name].payloads
            sites = [(tensor, tensor.sites[0]) for tensor in template.table.plans[plan].tensors]
            keys = [
                bytes(payloads[site.payload][site.offset :][: tensor.key_length]).decode("ascii")
                for tensor, site in sites
            ]
            data = {key: program.named[key] for key in keys if key not in known}
        except (KeyError, IndexError, UnicodeDecodeError) as error:
            raise _damaged(name, path) from error
        if any(hashlib.sha256(blob).hexdigest() != key[-KEY_LENGTH:] for key, blob in data.items()):
            raise _damaged(name, path)
        return cls(name=name, plan=plan, keys=tuple(keys), data=data)

    def method(self, template: MultimethodTemplate) -> PackedMethod:
        """Return the template's method with this adapter's keys."""
        method = template.method(self.plan)
        payloads = [bytearray(payload) for payload in method.payloads]
        for tensor, key in zip(template.table.plans[self.plan].tensors, self.keys, strict=True):
            for site in tensor.sites:
                payloads[site.payload][site.offset : site.offset + len(key)] = key.encode("ascii")
        return PackedMethod(source=method.source, payloads=tuple(bytes(payload) for payload in payloads))


def _damaged(name: str, path: Path) -> BundleError:
    return BundleError(
        f"{path.name} does not hold adapter {name!r} as it was linked: a tensor is missing or changed.",
        where=str(path),
        remedy="Export the bundle again, or restore the file from a copy.",
    )


def link_program(template: MultimethodTemplate, residents: Sequence[Resident]) -> list[Buffer]:
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
    named = [DataBlob(key=key, data=data, digest=key[-KEY_LENGTH:]) for key, data in blobs.items()]
    named += program_marks(template.table.mark, [resident.name for resident in ordered])
    return template.program.assemble({BASE_METHOD: template.program.methods[BASE_METHOD], **methods}, named)
