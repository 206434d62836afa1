"""The lowered template of a multi-method program without the base's weights, for the template cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.pte import Buffer
from lora_core_xnnpack.cache.origins import (
    BaseTensor,
    DependsOnWeightsError,
    digests_of,
    is_content_key,
    key_offsets,
    trace_foundation,
)
from lora_core_xnnpack.files.data_file import DataBlob
from lora_core_xnnpack.files.named_blobs import NamedBlob
from lora_core_xnnpack.files.program import PackedMethod, ProgramParts
from lora_core_xnnpack.multimethod.lowering import LoweredTogether
from lora_core_xnnpack.multimethod.relocations import MultimethodTemplate
from lora_core_xnnpack.slot_tensors import KEY_LENGTH, KeySite

if TYPE_CHECKING:
    import torch

_PROGRAM, _TABLE = "model.pte", "model.json"


@attrs.frozen(kw_only=True)
class BaseKeySites:
    """Where the key of the foundation's blob `tensor` (its index) stands in the delegates of `method`."""

    method: str
    tensor: int
    sites: tuple[KeySite, ...]


@attrs.frozen(kw_only=True)
class WeightlessTogether:
    """The template and its file's bytes, the foundation's blobs in stored order, and where their keys stand."""

    program: bytes
    template: MultimethodTemplate
    foundation: tuple[BaseTensor, ...]
    sites: tuple[BaseKeySites, ...]
    planned_memory: Mapping[str, int]

    @classmethod
    def strip(cls, module: torch.nn.Module, lowered: LoweredTogether, data: Buffer, blobs: Sequence[NamedBlob]) -> Self:
        """Take a lowered template and its foundation file, whose bytes are `data`, apart from the weights in `module`.

        Raises `DependsOnWeightsError`, also if putting the program together again does not give its bytes.
        """
        return cls.of(lowered, trace_foundation(module, blobs, digests_of(data, blobs)), [blob.key for blob in blobs])

    @classmethod
    def of(cls, lowered: LoweredTogether, foundation: Sequence[BaseTensor], keys: Sequence[str]) -> Self:
        """Return a lowered template whose program names the tensors of `foundation` by `keys`.

        Raises `DependsOnWeightsError` if putting the program together again does not give its bytes.
        """
        parts = ProgramParts.parse(lowered.program)
        if _assembled(parts, {}) != lowered.program:
            raise DependsOnWeightsError("the program is not laid out as ExecuTorch 1.5.1 lays programs out")
        return cls(
            program=lowered.program,
            template=MultimethodTemplate(program=parts, table=lowered.table),
            foundation=tuple(foundation),
            sites=tuple(_sites(parts, keys)),
            planned_memory=lowered.planned_memory,
        )

    @classmethod
    def places(cls, plans: Sequence[SlotPlan]) -> Sequence[Sequence[SlotPlan]]:
        """Return the plans of what is kept for itself: all, for there is one program."""
        return (plans,)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the program that is the only one of `parts`."""
        (program,) = parts
        return program

    def parts(self) -> Sequence[Self]:
        """Return what is kept for itself."""
        return (self,)

    def fill(self, blobs: Sequence[NamedBlob]) -> LoweredTogether:
        """Return what lowering another base would have given, whose foundation holds `blobs`."""
        table = self.template.table
        sizes = {tensor.size for plan in table.plans for tensor in plan.tensors}
        keys = {blob.key for blob in blobs if is_content_key(blob.key) and blob.size in sizes}
        return LoweredTogether(
            program=_assembled(self.template.program, self._rekeyed(blobs)),
            table=attrs.evolve(table, foundation_keys=tuple(sorted(keys))),
            planned_memory=self.planned_memory,
        )

    def _rekeyed(self, blobs: Sequence[NamedBlob]) -> dict[str, PackedMethod]:
        methods = self.template.program.methods
        payloads = {name: [bytearray(payload) for payload in method.payloads] for name, method in methods.items()}
        for found in self.sites:
            key = blobs[found.tensor].key.encode("ascii")
            for site in found.sites:
                payloads[found.method][site.payload][site.offset : site.offset + len(key)] = key
        return {
            name: attrs.evolve(method, payloads=tuple(bytes(payload) for payload in payloads[name]))
            for name, method in methods.items()
        }

    @classmethod
    def from_kept(cls, directory: Path, content: Mapping[str, Any]) -> Self:
        """Read the template in `directory`; raises as `Keepable.from_kept` says."""
        return cls(
            program=(directory / _PROGRAM).read_bytes(),
            template=MultimethodTemplate.read(directory / _PROGRAM, directory / _TABLE),
            foundation=tuple(BaseTensor.from_json(tensor) for tensor in content["foundation"]),
            sites=tuple(
                BaseKeySites(
                    method=each["method"],
                    tensor=each["tensor"],
                    sites=tuple(KeySite(**site) for site in each["sites"]),
                )
                for each in content["sites"]
            ),
            planned_memory=content["planned_memory"],
        )

    def to_kept(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        """Return the template's two files, and where base tensors come from and their keys stand."""
        files = {_PROGRAM: self.program, _TABLE: self.template.table.to_json().encode("utf-8")}
        content = {
            "foundation": [attrs.asdict(tensor) for tensor in self.foundation],
            "sites": [attrs.asdict(each) for each in self.sites],
            "planned_memory": dict(self.planned_memory),
        }
        return files, content


def _assembled(parts: ProgramParts, rekeyed: Mapping[str, PackedMethod]) -> bytes:
    methods = {name: rekeyed.get(name, method) for name, method in parts.methods.items() if method.computes}
    named = [DataBlob(key=key, data=data, digest=key[-KEY_LENGTH:]) for key, data in parts.named.items()]
    return b"".join(parts.assemble(methods, named))


def _sites(parts: ProgramParts, keys: Sequence[str]) -> list[BaseKeySites]:
    found = []
    for name, method in parts.methods.items():
        payloads = [bytes(payload) for payload in method.payloads]
        for index, key in enumerate(keys):
            sites = tuple(
                KeySite(payload=position, offset=offset)
                for position, payload in enumerate(payloads)
                for offset in (key_offsets(payload, key) if is_content_key(key) else ())
            )
            if sites:
                found.append(BaseKeySites(method=name, tensor=index, sites=sites))
    return found
