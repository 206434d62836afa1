"""Read packages: every byte is checked against the digest before anything is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter, Update
from lora_core.adapters.ordering import natural_key
from lora_core.adapters.packages.header import NewerPackageError, PackageHeader, require_known
from lora_core.adapters.packages.seal import DIGEST, SIGNATURE, Trust, digest_of
from lora_core.adapters.slots.kinds import KINDS, kind_of
from lora_core.errors import AdapterError, Problem, StorageError
from lora_core.intake.files import open_regular
from lora_core.intake.limits import HEADER, raised
from lora_core.intake.plain_json import parse_json
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.tensors import READABLE, StoredTensor, open_tensors, scan

_COPY_AGAIN = "Copy or download it again."
_PACK_AGAIN = "Make the package again with `lora-core pack`."
_TRAIN_AGAIN = "The training went wrong: train it again."
_ANOTHER = "Was the adapter trained for another base?"
_CALLED = {"linear": "linear layer", "embedding": "embedding"}


@attrs.frozen(kw_only=True)
class AdapterPackage:
    """A package opened: its header checked, its matrices on disk. `signer` and `signature` are in hex."""

    path: Path
    header: PackageHeader
    digest: str
    tensors: Mapping[tuple[str, str], Mapping[str, StoredTensor]]
    signer: str | None
    signature: str | None

    @classmethod
    def open(cls, path: Path) -> AdapterPackage:
        """Open the package at `path` and check its digest; raises `AdapterError` saying what is wrong with the file."""
        stored = open_tensors(path, error=AdapterError)
        try:
            head = _head(path)
            fields = _metadata(head)
            require_known(fields)
            tensors = _by_update(stored)
            header = PackageHeader.from_metadata(fields, list(tensors))
            digest = digest_of(head, path)
        except NewerPackageError as newer:
            what = f"This package cannot be read: {newer}."
            raise AdapterError(what, where=str(path), remedy="Update lora-core.") from newer
        except OSError as error:
            raise StorageError(f"Cannot read the package: {error}.", where=str(path)) from error
        except (ValueError, RecursionError) as error:
            raise AdapterError(f"This is no whole package: {error}.", where=str(path), remedy=_COPY_AGAIN) from error
        if digest != fields.get(DIGEST):
            what = f"The package is damaged: its bytes have digest {digest}, it says {fields.get(DIGEST)}."
            raise AdapterError(what, where=str(path), remedy=_COPY_AGAIN)
        signer, signature = fields.get("signer"), fields.get(SIGNATURE)
        return cls(path=path, header=header, digest=digest, tensors=tensors, signer=signer, signature=signature)

    def implied_base(self) -> ModelSummary:
        """Return a base as far as the package itself tells it: the layers that its matrices are for."""
        layers: dict[str, LayerInfo] = {}
        for (module, kind), parts in self.tensors.items():
            try:
                extent = kind_of(kind).extent(Update(module=module, kind=kind, tensors=parts, scaling=1.0))
            except (KeyError, ValueError) as error:
                what = f"Its tensors are no update of kind {kind!r}"
                raise AdapterError(what, where=f"{self.path}: {module}/{kind}", remedy=_PACK_AGAIN) from error
            known = layers.get(module)
            layers[module] = LayerInfo(
                name=module,
                kind=kind_of(kind).layer,
                in_features=extent.in_features or (known.in_features if known is not None else 0),
                out_features=extent.out_features,
            )
        name = self.header.base_model or self.path.name
        return ModelSummary(name=name, family="", layers=tuple(layers.values()), module_names=tuple(layers))

    def distrust(self, trust: Trust) -> Problem | None:
        """Return why `trust` does not accept this package, if it does not."""
        objection = trust.objection(self.digest, self.signer, self.signature)
        remedy = "Get the package from its publisher, or leave --trust out."
        return None if objection is None else Problem(what=objection, where=str(self.path), remedy=remedy)

    def adapter(self, name: str, base: ModelSummary, *, strength: float = 1.0) -> Adapter:
        """Return the adapter, called `name`; raises `AdapterError` if its tensors make none for `base`."""
        problems = [
            Problem(what="It holds NaN or infinity", where=f"{self.path}: {tensor}", remedy=_TRAIN_AGAIN)
            for tensor in scan(self.path, self._stored()).not_finite
        ]
        updates = []
        for (module, kind), parts in self.tensors.items():
            scaling = self.header.scalings[module, kind]
            update = Update(module=module, kind=kind, tensors=parts, scaling=scaling)
            problem = self._misshapen(update, base)
            problems += [] if problem is None else [problem]
            updates.append(update)
        if not updates:
            problems.append(Problem(what="It holds no tensor", where=str(self.path), remedy=_PACK_AGAIN))
        if problems:
            raise AdapterError([attrs.evolve(each, what=f"Adapter {name!r}: {each.what}") for each in problems])
        return Adapter(
            name=name,
            updates=tuple(sorted(updates, key=lambda each: (natural_key(each.module), each.kind))),
            digest=self.header.adapter,
            source=str(self.path),
            base_model=self.header.base_model,
        ).scaled(strength)

    def _stored(self) -> list[StoredTensor]:
        found = [tensor for parts in self.tensors.values() for tensor in parts.values()]
        return sorted(found, key=lambda tensor: (tensor.offset, tensor.size))

    def _misshapen(self, update: Update, base: ModelSummary) -> Problem | None:
        where = f"{self.path}: {update.module}/{update.kind}"
        wanted = kind_of(update.kind).layer
        layers = {layer.name: layer for layer in base.layers if layer.kind == wanted}
        layer = layers.get(update.module)
        if layer is None:
            what = f"Base model {base.name!r} has no {_CALLED[wanted]} {update.module!r}"
            return Problem(what=what, where=where, remedy=_ANOTHER)
        shapes = {name: tensor.shape for name, tensor in update.tensors.items()}
        try:
            kind = kind_of(update.kind)
            extent = kind.extent(update)
            expected = {part.name: part.shape for part in kind.parts(extent)}
        except (KeyError, ValueError):
            expected = {}
        if shapes != expected or any(not all(shape) for shape in shapes.values()):
            what = f"Its tensors {shapes} are no update of kind {update.kind!r}"
            return Problem(what=what, where=where, remedy=_PACK_AGAIN)
        if extent.in_features not in (0, layer.in_features) or extent.out_features != layer.out_features:
            what = f"It is for {extent.in_features} to {extent.out_features} features, where the base has "
            return Problem(what=f"{what}{layer.in_features} to {layer.out_features}", where=where, remedy=_ANOTHER)
        return None


def _head(path: Path) -> bytes:
    """Return all bytes before the data; the safetensors library has found the length right."""
    with open_regular(path, AdapterError) as file:
        length = file.read(8)
        return length + file.read(min(int.from_bytes(length, "little"), raised(HEADER)))


def _metadata(head: bytes) -> dict[str, str]:
    fields = parse_json(head[8:]).get("__metadata__") or {}
    if not isinstance(fields, dict) or not all(isinstance(text, str) for text in fields.values()):
        raise ValueError("its metadata is not text")
    return fields


def _by_update(stored: Sequence[StoredTensor]) -> dict[tuple[str, str], dict[str, StoredTensor]]:
    found: dict[tuple[str, str], dict[str, StoredTensor]] = {}
    for tensor in stored:
        module, kind, part = [*tensor.name.rsplit("/", 2), "", ""][:3]
        if kind not in KINDS or not part:
            raise ValueError(f"{tensor.name!r} is no part of an update; kinds are {', '.join(KINDS)}")
        if tensor.dtype not in READABLE:
            raise ValueError(f"{tensor.name!r} is of type {tensor.dtype}; types are {', '.join(READABLE)}")
        found.setdefault((module, kind), {})[part] = tensor
    return found
