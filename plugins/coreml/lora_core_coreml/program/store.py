"""A program object on disk: what a later link needs, without a second copy of the base's weights.

`template/object.json` holds execution plans and relocations, `template/partition_N.mlmodel` the CoreML functions of the
template methods. The foundation, the base's own functions and the constant segment are read from the program itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_core.errors import BundleError
from lora_core.intake.files import read_regular
from lora_core.intake.limits import TABLE
from lora_core.intake.plain_json import parse_json
from lora_core_coreml.program.object import (
    EmbeddedConstant,
    Function,
    MethodObject,
    PartitionFoundation,
    ProgramObject,
    Relocation,
    SlotPart,
)
from lora_core_coreml.program.opened import OpenedProgram
from lora_core_coreml.storage import blobfile, mil, package
from lora_core_coreml.storage.blobfile import BlobKey, MilBlob
from lora_core_coreml.storage.messages import MilModel

SCHEMA_VERSION = 1
FOLDER = "template"
_OBJECT = "object.json"


def save(program: ProgramObject, directory: Path) -> list[Path]:
    """Write the templates of `program` under `directory` and return the files written."""
    directory.mkdir(parents=True)
    written = []
    for index in range(len(program.foundations)):
        model = mil.new_model()
        for number, template in enumerate(program.templates):
            for method in template:
                name, function = _function_name(number, method.kind), method.functions[index]
                model.mlProgram.functions[name].CopyFrom(function.message)
                description = model.description.functions.add()
                description.CopyFrom(function.description)
                description.name = name
        path = directory / _partition(index)
        path.write_bytes(mil.serialize(model))
        written.append(path)
    path = directory / _OBJECT
    # Keys keep their order: flatc lays out a table's fields in the order they are given.
    path.write_text(json.dumps(_to_json(program), indent=1) + "\n")
    return [*written, path]


def load(opened: OpenedProgram, directory: Path) -> ProgramObject:
    """Read a program object back from a program and its saved templates; raises `BundleError`."""
    data = _read_json(directory / _OBJECT)
    packages, models = opened.packages, opened.models
    if len(packages) != len(data["foundations"]):
        raise BundleError("The template and the program have different numbers of partitions", where=str(opened.path))
    templates = [mil.parse_model(_read(directory / _partition(index))) for index in range(len(packages))]
    constants = opened.stored.program.get("constant_segment") or {}
    offsets = tuple(int(offset) for offset in constants.get("offsets") or ())
    return ProgramObject(
        methods=tuple(_method(entry, models, entry["kind"]) for entry in data["methods"]),
        templates=tuple(
            tuple(_method(entry, templates, _function_name(number, entry["kind"])) for entry in template)
            for number, template in enumerate(data["templates"])
        ),
        foundations=tuple(_foundation(*entry) for entry in zip(packages, models, data["foundations"], strict=True)),
        constants=tuple(data["constants"]),
        constant_offsets=offsets,
        constant_data=opened.stored.read_segment(int(constants.get("segment_index", 0))) if offsets else b"",
        version=int(opened.stored.program["version"]),
    )


def file_names(partitions: int) -> list[str]:
    """Return the names of the files that hold the templates of a program of so many partitions."""
    return [_OBJECT, *(_partition(index) for index in range(partitions))]


def _to_json(program: ProgramObject) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "methods": [_method_to_json(method) for method in program.methods],
        "templates": [[_method_to_json(method) for method in template] for template in program.templates],
        "foundations": [
            {
                "size": foundation.size,
                "sha256": foundation.sha256,
                "blobs": [[b.offset, b.dtype, b.data_offset, b.size, b.padding_bits] for b in foundation.blobs],
            }
            for foundation in program.foundations
        ],
        "constants": list(program.constants),
    }


def _method_to_json(method: MethodObject) -> dict[str, Any]:
    functions = [
        {
            "relocations": [[r.reference, r.target.module, r.target.part] for r in function.relocations],
            "embedded": [
                [c.reference, c.key.dtype, c.key.padding_bits, c.key.sha256, base64.b64encode(c.data).decode()]
                for c in function.embedded
            ],
        }
        for function in method.functions
    ]
    return {"kind": method.kind, "plan": method.plan, "functions": functions}


def _method(entry: Mapping[str, Any], models: Sequence[MilModel], name: str) -> MethodObject:
    functions = []
    for model, stored in zip(models, entry["functions"], strict=True):
        description = next((d for d in model.description.functions if d.name == name), None)
        if description is None or name not in model.mlProgram.functions:
            raise BundleError(f"The CoreML package has no function {name!r}")
        functions.append(
            Function(
                message=model.mlProgram.functions[name],
                description=description,
                relocations=tuple(_relocation(*values) for values in stored["relocations"]),
                embedded=tuple(_embedded(*values) for values in stored["embedded"]),
            )
        )
    return MethodObject(kind=entry["kind"], plan=entry["plan"], functions=tuple(functions))


def _relocation(reference: int, module: str, part: str) -> Relocation:
    return Relocation(reference=reference, target=SlotPart(module=module, part=part))


def _embedded(reference: int, dtype: int, padding_bits: int, sha256: str, text: str) -> EmbeddedConstant:
    data = base64.b64decode(text)
    key = BlobKey(dtype=dtype, size=len(data), padding_bits=padding_bits, sha256=sha256)
    return EmbeddedConstant(reference=reference, key=key, data=data)


def _foundation(found: package.StoredPackage, model: MilModel, entry: Mapping[str, Any]) -> PartitionFoundation:
    start = 0
    if entry["size"] > blobfile.ALIGNMENT:
        start, size = found.region(package.WEIGHTS)
        if size < entry["size"]:
            raise BundleError("The program's weights are shorter than its template says", where=str(found.program))
    shell = mil.new_model()
    shell.CopyFrom(model)
    del shell.description.functions[:]
    shell.mlProgram.functions.clear()
    blobs = (MilBlob(offset=o, dtype=t, data_offset=d, size=s, padding_bits=p) for o, t, d, s, p in entry["blobs"])
    return PartitionFoundation(
        path=found.program,
        start=start,
        size=entry["size"],
        blobs=tuple(blobs),
        sha256=entry["sha256"],
        shell=shell,
    )


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, TABLE, BundleError, links=False)
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = parse_json(_read(path))
        if not isinstance(data, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise _unreadable(path, error) from error
    if data.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"The template has schema version {data.get('schema_version')}; this lora-core reads {SCHEMA_VERSION}",
            where=str(path),
            remedy="Use the version of lora-core-coreml that wrote it, or export again.",
        )
    return data


def _unreadable(path: Path, error: Exception) -> BundleError:
    return BundleError(
        f"The template cannot be read: {error}", where=str(path), remedy="Copy the whole bundle again, or export again."
    )


def _function_name(number: int, kind: str) -> str:
    return f"template{number}_{kind}"


def _partition(index: int) -> str:
    return f"partition_{index}.mlmodel"
