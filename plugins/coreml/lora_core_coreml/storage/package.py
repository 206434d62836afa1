"""A CoreML package (`.mlpackage`) inside a program: its files, their order, and how they are found again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from lora_core.errors import BundleError
from lora_core.intake.parsing import parsing
from lora_core_coreml.storage import flatten
from lora_core_coreml.storage.flatten import Region
from lora_core_coreml.storage.pte import StoredProgram

PACKAGE = "model.mlpackage"
MODEL = f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin"
_MANIFEST = f"{PACKAGE}/Manifest.json"
_METADATA = "metadata.json"
_TAIL = 1 << 16


@attrs.frozen(kw_only=True)
class Package:
    """A flattened package: the blob file first (aligned as the segment is), then the small files and the index."""

    weights_size: int
    _rest: tuple[bytes, ...]

    @classmethod
    def build(
        cls,
        *,
        index: int,
        identifier: str,
        interfaces: Mapping[str, tuple[list[str], list[str]]],
        model: bytes,
        weights_size: int,
    ) -> Package:
        """Lay out partition `index`; `interfaces` has the input and output names of each method."""
        methods = {name: {"inputNames": i, "outputNames": o} for name, (i, o) in interfaces.items()}
        metadata = json.dumps({"identifier": identifier, "methods": methods}).encode()
        files = {MODEL: model, _MANIFEST: _manifest(identifier, weights_size > 0), _METADATA: metadata}
        regions = [Region(path=WEIGHTS, offset=0, size=weights_size)] if weights_size else []
        position = weights_size
        for path, data in files.items():
            regions.append(Region(path=path, offset=position, size=len(data)))
            position += len(data)
        rest = (*files.values(), flatten.trailer(f"lowered_module_partition_{index}", regions))
        return cls(weights_size=weights_size, rest=rest)

    @property
    def size(self) -> int:
        """The length of the flattened package."""
        return self.weights_size + sum(map(len, self._rest))

    def rest(self) -> Iterator[bytes]:
        """Yield everything behind the blob file."""
        yield from self._rest


@attrs.frozen(kw_only=True)
class StoredPackage:
    """A package found in a program: files by path, as (offset in the program file, size); `index` is where that is
    said.
    """

    program: Path
    key: str
    files: Mapping[str, tuple[int, int]]
    index: tuple[int, int]

    def read(self, path: str) -> bytes:
        """Read one file of the package; raises `BundleError` if it is not there."""
        offset, size = self.region(path)
        with self.program.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def region(self, path: str) -> tuple[int, int]:
        """Return (offset, size) of one file of the package; raises `BundleError`."""
        try:
            return self.files[path]
        except KeyError as error:
            raise BundleError(f"The package {self.key} has no file {path}", where=str(self.program)) from error

    def extract(self, directory: Path) -> Path:
        """Write the `.mlpackage` under `directory` and return its path."""
        for path, (offset, size) in self.files.items():
            if not path.startswith(f"{PACKAGE}/"):
                continue
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.program.open("rb") as source, target.open("wb") as file:
                source.seek(offset)
                while size:
                    chunk = source.read(min(1 << 20, size))
                    if not chunk:
                        raise BundleError(f"The program ends within {path}", where=str(self.program))
                    file.write(chunk)
                    size -= len(chunk)
        return directory / PACKAGE


def stored_packages(program: StoredProgram) -> list[StoredPackage]:
    """Return the packages of a program, in the order of its partitions; raises `BundleError`."""
    found = []
    with parsing(program.path):
        for entry in program.program.get("named_data") or []:
            start, size = program.segment(entry["segment_index"])
            found.append(_open(program.path, entry["key"], start, size))
    if not found:
        raise BundleError("The program holds no CoreML package", where=str(program.path))
    return found


def _open(path: Path, key: str, start: int, size: int) -> StoredPackage:
    with path.open("rb") as file:
        length = min(size, _TAIL)
        file.seek(start + size - length)
        tail = file.read(length)
    regions = flatten.read_regions(tail, where=str(path))
    indexed = flatten.trailer_size(tail)
    files = {}
    for region in regions:
        if region.offset + region.size > size:
            raise BundleError(f"{region.path} lies outside its package", where=str(path))
        files[region.path] = (start + region.offset, region.size)
    return StoredPackage(program=path, key=key, files=files, index=(start + size - indexed, indexed))


def _manifest(identifier: str, has_weights: bool) -> bytes:
    """Return `Manifest.json` with item identifiers that follow from the content instead of random ones."""
    items = [("model.mlmodel", "CoreML Model Specification", "com.apple.CoreML/model.mlmodel")]
    if has_weights:
        items.append(("weights", "CoreML Model Weights", "com.apple.CoreML/weights"))
    names = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{identifier}/{name}")) for name, _, _ in items}
    entries = {
        names[name]: {"author": "com.apple.CoreML", "description": description, "name": name, "path": path}
        for name, description, path in items
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": names["model.mlmodel"],
    }
    return json.dumps(manifest, indent=4).encode()
