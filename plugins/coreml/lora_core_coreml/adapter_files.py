"""Where export and `add` both end with `--lora inputs`: adapters as files of their own, for one program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.input_names import input_key, slots_of
from lora_core.adapters.slots.kinds import Values
from lora_core.backend import Artifacts, WrittenFile
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError, BundleError
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.intake.parsing import parsing
from lora_core.sharing.proof import require_foundation
from lora_core_coreml.program.metadata import constant_strings
from lora_core_coreml.program.naming import FOUNDATION, methods_of
from lora_core_coreml.sharing import ROLE
from lora_core_coreml.storage import pte
from lora_core_coreml.storage.adapter_file import AdapterData, read_adapter, write_adapter

if TYPE_CHECKING:
    import numpy.typing as npt

ADAPTERS = "adapters"
_STAGE = "link adapters"


def adapter_path(name: str) -> str:
    """Return the path of the file of the adapter `name` in a bundle."""
    return f"{ADAPTERS}/{name}.ptd"


def require_program(bundle: Bundle, program: Path) -> None:
    """Raise `BundleError` if the program is not of the base that `bundle` was made with, by its own account."""
    with parsing(program):
        named = constant_strings(pte.read(program).program, FOUNDATION)
    if named is None or len(named) != 1:
        raise BundleError("The program does not say which base it is of", where=str(program), remedy="Export again.")
    require_foundation(bundle, named[0])


def write_all(
    foundation: str, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit, *, float16: bool
) -> list[WrittenFile]:
    """Write a file for each adapter, with the fingerprint of its base.

    Raises `AdapterError` naming the matrices that float16 cannot hold.
    """
    if not adapters:
        return []
    (out / ADAPTERS).mkdir()
    files = []
    with stage(emit, _STAGE):
        for done, placed in enumerate(adapters, 1):
            path = adapter_path(placed.name)
            digest = write_adapter(out / path, foundation, _tensors(placed, float16=float16))
            files.append(WrittenFile(path=path, role=ROLE, adapter=placed.name, sha256=digest))
            emit(StageAdvanced(stage=_STAGE, done=done, total=len(adapters)))
    return files


def link(
    bundle: Bundle, program: str, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit, *, float16: bool
) -> Artifacts:
    """Write `adapters` for the `program` of `bundle`, which stays as it is."""
    require_program(bundle, bundle.file(program))
    foundation = bundle.manifest.foundation
    files = write_all(foundation, adapters, out, emit, float16=float16)
    multifunction = bool(bundle.manifest.options.get("multifunction"))
    methods = methods_of([each.name for each in adapters], program, multifunction)
    return Artifacts(foundation=foundation, files=tuple(files), methods=methods)


def opened(bundle: Bundle, name: str) -> AdapterData:
    """Open the file of the adapter `name`; raises `BundleError` if it is damaged or was made for another base."""
    file = read_adapter(bundle.file(adapter_path(name)))
    if file.foundation != bundle.manifest.foundation:
        raise BundleError(
            f"The file of adapter {name!r} was made for another base",
            where=str(file.path),
            remedy="Remove it and add it again from its source.",
        )
    return file


def slot_values(file: AdapterData) -> Mapping[str, Values]:
    """Read A and B of every slot of `file`, as float32; raises `BundleError` if they are not pairs."""
    tensors = [(key, file.read(key).astype(np.float32)) for key in file.tensors]
    with parsing(file.path):
        return slots_of(tensors)


def _tensors(placed: PlacedAdapter, *, float16: bool) -> dict[str, npt.NDArray[np.float16] | npt.NDArray[np.float32]]:
    tensors: dict[str, npt.NDArray[np.float16] | npt.NDArray[np.float32]] = {}
    too_large = []
    for slot, parts in placed.values():
        for part, array in parts.items():
            with np.errstate(over="ignore"):
                stored = array.astype(np.float16) if float16 else array
            if not np.isfinite(stored).all():
                too_large.append(f"{part.upper()} of {slot.module}")
            tensors[input_key(slot.module, part)] = stored
    if too_large:
        raise AdapterError(
            f"Adapter {placed.name!r} has values that float16 cannot hold: {', '.join(too_large)}",
            where=placed.adapter.source,
            remedy="Export with --dtype fp32, or check lora_alpha and the strength.",
        )
    return tensors
