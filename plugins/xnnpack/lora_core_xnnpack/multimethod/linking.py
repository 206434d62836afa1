"""Link adapters into the one program of a multi-method bundle, and take them out again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import plan_for
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts
from lora_core.bundle.bundle import Bundle, BundledAdapter, Method
from lora_core.errors import AdapterError
from lora_core.events import Emit, StageAdvanced, stage
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.multimethod.relocations import Template
from lora_core_xnnpack.multimethod.residents import Resident, link_program
from lora_core_xnnpack.split.linking import require_template, write_parts, written

PROGRAM_FILE = "model.pte"
TEMPLATE_FILE, TABLE_FILE = "template/model.pte", "template/model.json"
_STAGE = "Link adapters"


@attrs.frozen(kw_only=True)
class LinkTarget:
    """What adapters are linked into: a template, its slot plans, the foundation's hash, and who is there already."""

    template: Template
    plans: tuple[SlotPlan, ...]
    foundation: str
    residents: tuple[Resident, ...] = ()

    @classmethod
    def of_bundle(cls, bundle: Bundle, *, without: Sequence[str] = ()) -> LinkTarget:
        """Return what `bundle` holds, but for the adapters `without`; raises `BundleError` if a file is damaged."""
        require_template(bundle)
        template = Template.read(bundle.file(TEMPLATE_FILE), bundle.file(TABLE_FILE))
        path = bundle.file(PROGRAM_FILE)
        program = ProgramParts.read(path)
        residents = (
            Resident.of_program(entry.name, entry.plan, program, template, path)
            for entry in bundle.manifest.adapters
            if entry.name not in without
        )
        return cls(
            template=template,
            plans=bundle.manifest.plans,
            foundation=bundle.manifest.foundation,
            residents=tuple(residents),
        )


def link_together(target: LinkTarget, adapters: Sequence[Adapter], out: Path, emit: Emit) -> Artifacts:
    """Write the program with the residents of `target` and with `adapters` into `out`."""
    residents: list[Resident] = []
    bundled: list[BundledAdapter] = []
    with stage(emit, _STAGE):
        for done, adapter in enumerate(adapters, start=1):
            index = plan_for(target.plans, adapter)
            if index is None:
                raise AdapterError([problem for plan in target.plans for problem in plan.misfits(adapter)])
            residents.append(Resident.of_adapter(adapter, index, target.plans[index], target.template))
            bundled.append(_entry(adapter, index, target.foundation))
            emit(StageAdvanced(stage=_STAGE, done=done, total=len(adapters)))
        write_parts(out / PROGRAM_FILE, link_program(target.template, (*target.residents, *residents)))
    return Artifacts(
        foundation=target.foundation,
        artifacts=(written(out, PROGRAM_FILE, "program"),),
        adapters=tuple(bundled),
        methods=tuple(Method(name=each.name, program=PROGRAM_FILE, adapter=each.name) for each in bundled),
    )


def _entry(adapter: Adapter, plan: int, foundation: str) -> BundledAdapter:
    return BundledAdapter(
        name=adapter.name,
        digest=adapter.digest,
        foundation=foundation,
        rank=adapter.max_rank,
        modules=len(adapter.pairs),
        plan=plan,
    )


def link_into(bundle: Bundle, adapters: Sequence[Adapter], out: Path, emit: Emit) -> Artifacts:
    """Write the bundle's program with `adapters` added: neither base weights nor ExecuTorch are needed."""
    return link_together(LinkTarget.of_bundle(bundle), adapters, out, emit)


def unlink_from(bundle: Bundle, names: Sequence[str], out: Path, emit: Emit) -> Artifacts:
    """Write the bundle's program without the adapters `names`."""
    return link_together(LinkTarget.of_bundle(bundle, without=names), (), out, emit)
