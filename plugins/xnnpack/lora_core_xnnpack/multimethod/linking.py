"""Link adapters into the one program of a multi-method bundle, and take them out again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.backend import Artifacts, WrittenFile
from lora_core.bundle.bundle import Bundle, Method
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.intake.parsing import parsing
from lora_core_xnnpack.artifacts import LINK_STAGE, require_template, write_parts
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.multimethod.relocations import MultimethodTemplate
from lora_core_xnnpack.multimethod.residents import Resident, link_program

PROGRAM_FILE = "model.pte"
TEMPLATE_FILE, TABLE_FILE = "template/model.pte", "template/model.json"


@attrs.frozen(kw_only=True)
class MultimethodTarget:
    """What adapters are linked into: a template, the foundation's hash, and who is there already."""

    template: MultimethodTemplate
    foundation: str
    residents: tuple[Resident, ...] = ()

    @classmethod
    def of_bundle(cls, bundle: Bundle, *, without: Sequence[str] = ()) -> MultimethodTarget:
        """Return what `bundle` holds, but for the adapters `without`; raises `BundleError` if a file is damaged."""
        require_template(bundle)
        foundation = bundle.manifest.foundation
        template = MultimethodTemplate.read(bundle.file(TEMPLATE_FILE), bundle.file(TABLE_FILE), foundation)
        path = bundle.file(PROGRAM_FILE)
        program = ProgramParts.read(path)
        with parsing(path):
            residents = tuple(
                Resident.of_program(entry.name, entry.plan, program, template, path)
                for entry in bundle.manifest.adapters
                if entry.name not in without
            )
        return cls(template=template, foundation=bundle.manifest.foundation, residents=residents)


def link_together(target: MultimethodTarget, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
    """Write the program with the residents of `target` and with `adapters` into `out`."""
    residents: list[Resident] = []
    with stage(emit, LINK_STAGE):
        for done, adapter in enumerate(adapters, start=1):
            residents.append(Resident.of_adapter(adapter, target.template))
            emit(StageAdvanced(stage=LINK_STAGE, done=done, total=len(adapters)))
        with parsing(PROGRAM_FILE):
            parts = link_program(target.template, (*target.residents, *residents))
        write_parts(out / PROGRAM_FILE, parts)
    return Artifacts(
        foundation=target.foundation,
        files=(WrittenFile(path=PROGRAM_FILE, role="program"),),
        methods=tuple(Method(name=each.name, program=PROGRAM_FILE, adapter=each.name) for each in adapters),
    )


def link_into(bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
    """Write the bundle's program with `adapters` added: neither base weights nor ExecuTorch are needed."""
    return link_together(MultimethodTarget.of_bundle(bundle), adapters, out, emit)


def unlink_from(bundle: Bundle, names: Sequence[str], out: Path, emit: Emit) -> Artifacts:
    """Write the bundle's program without the adapters `names`."""
    return link_together(MultimethodTarget.of_bundle(bundle, without=names), (), out, emit)
