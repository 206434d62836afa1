"""Where export and `add` both end: a file for each adapter, and a program that none of them changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.input_names import InputPlan, input_method
from lora_core.adapters.slots.kinds import Values
from lora_core.backend import Artifacts, WrittenFile
from lora_core.bundle.bundle import Bundle, Method
from lora_core.errors import BundleError
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.intake.parsing import parsing
from lora_core_xnnpack.artifacts import LINK_STAGE, MARK_DETAIL, require_template
from lora_core_xnnpack.files.marks import program_inputs, program_mark
from lora_core_xnnpack.inputs.adapter_file import read_adapter, write_adapter

ADAPTERS = "adapters"
PROGRAM_FILE = "model.pte"
FORWARD = "forward"


def takes_adapters(bundle: Bundle) -> bool:
    """Say whether adapters are inputs of the program of `bundle`."""
    return bundle.manifest.options.get("lora") == "inputs"


def adapter_path(name: str) -> str:
    """Return the path of the file of the adapter `name` in a bundle."""
    return f"{ADAPTERS}/{name}.ptd"


def write_all(foundation: str, mark: str, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
    """Write a file for each adapter into `out`, for the base with the fingerprint `foundation` and with `mark`."""
    files = []
    if adapters:
        (out / ADAPTERS).mkdir()
        with stage(emit, LINK_STAGE):
            for done, placed in enumerate(adapters, start=1):
                path = adapter_path(placed.name)
                digest = write_adapter(out / path, placed, mark)
                files.append(WrittenFile(path=path, role="adapter-data", adapter=placed.name, sha256=digest))
                emit(StageAdvanced(stage=LINK_STAGE, done=done, total=len(adapters)))
    methods = tuple(Method(name=each.name, program=PROGRAM_FILE, adapter=each.name) for each in adapters)
    return Artifacts(foundation=foundation, files=tuple(files), methods=methods)


def link(bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
    """Write `adapters` for the program of `bundle`, which stays as it is; neither base weights nor ExecuTorch are
    needed.
    """
    require_template(bundle)
    return write_all(bundle.manifest.foundation, _mark(bundle), adapters, out, emit)


def input_plans(bundle: Bundle) -> list[InputPlan]:
    """Return what the program's methods take of adapters, by slot plan; raises `BundleError` if it says otherwise."""
    path = bundle.file(PROGRAM_FILE)
    taken = program_inputs(path)
    with parsing(path):
        return [
            InputPlan.of(taken.get(input_method(number, FORWARD), ()), plan)
            for number, plan in enumerate(bundle.manifest.plans)
        ]


def slots_in(bundle: Bundle, name: str) -> Mapping[str, Values]:
    """Return A and B of every slot of the adapter `name`, mapped from its file; raises `BundleError`."""
    return read_adapter(bundle.file(adapter_path(name)), bundle.manifest.detail.get(MARK_DETAIL))


def _mark(bundle: Bundle) -> str:
    """Return the mark of the foundation; raises `BundleError` if the program is for another."""
    path = bundle.file(PROGRAM_FILE)
    recorded, found = bundle.manifest.detail.get(MARK_DETAIL), program_mark(path)
    if found is None or found != recorded:
        raise BundleError(
            f"{path.name} was made for another foundation than the bundle's",
            where=str(path),
            remedy="Restore the file that was exported, or export the bundle again.",
        )
    return found
