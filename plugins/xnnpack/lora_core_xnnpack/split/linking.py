"""Link adapters of a bundle and write what they add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import plan_for
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts
from lora_core.bundle.bundle import Artifact, Bundle, BundledAdapter, Method
from lora_core.errors import AdapterError, BundleError
from lora_core.events import Emit, StageAdvanced, stage
from lora_core_xnnpack.files.named_blobs import Buffer
from lora_core_xnnpack.split.rewriting import Linked, Template, link_adapter

_STAGE = "Link adapters"


@attrs.frozen(kw_only=True)
class LinkTarget:
    """What adapters are linked into: `template` gives the template of a plan by its index."""

    plans: tuple[SlotPlan, ...]
    template: Callable[[int], Template]
    foundation: str
    embed: bool

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> LinkTarget:
        """Return the target that a split bundle holds; templates are read on first use."""
        opened: dict[int, Template] = {}

        def template(index: int) -> Template:
            if index not in opened:
                opened[index] = Template.read(*(bundle.file(name) for name in template_files(index)))
            return opened[index]

        return cls(
            plans=bundle.manifest.plans,
            template=template,
            foundation=bundle.manifest.foundation,
            embed=bundle.manifest.options["adapter_data"] == "embedded",
        )


def template_files(index: int) -> tuple[str, str]:
    """Return the paths in a bundle of a plan's template program and relocation table."""
    return f"template/{index}.pte", f"template/{index}.json"


def write_template(template: Template, index: int, out: Path) -> tuple[Artifact, Artifact]:
    """Write a template's two files under `out`."""
    program, table = template_files(index)
    (out / program).parent.mkdir(exist_ok=True)
    (out / program).write_bytes(template.program)
    (out / table).write_text(template.table.to_json(), "utf-8")
    return written(out, program, "template"), written(out, table, "relocations")


def written(out: Path, path: str, role: str, adapter: str | None = None) -> Artifact:
    """Describe a file just written; the pipeline hashes it."""
    return Artifact(path=path, role=role, sha256="", size=(out / path).stat().st_size, adapter=adapter)


def link_all(target: LinkTarget, adapters: Sequence[Adapter], out: Path, emit: Emit) -> Artifacts:
    """Link `adapters` one after another into `out`; each is read, linked, written and let go."""
    artifacts: list[Artifact] = []
    bundled: list[BundledAdapter] = []
    if adapters:
        with stage(emit, _STAGE):
            for done, adapter in enumerate(adapters, start=1):
                files, entry = _link(target, adapter, out)
                artifacts += files
                bundled.append(entry)
                emit(StageAdvanced(stage=_STAGE, done=done, total=len(adapters)))
    return Artifacts(
        foundation=target.foundation,
        artifacts=tuple(artifacts),
        adapters=tuple(bundled),
        methods=tuple(Method(name=each.name, program=f"{each.name}.pte", adapter=each.name) for each in bundled),
    )


def _link(target: LinkTarget, adapter: Adapter, out: Path) -> tuple[list[Artifact], BundledAdapter]:
    index = plan_for(target.plans, adapter)
    if index is None:
        raise AdapterError([problem for plan in target.plans for problem in plan.misfits(adapter)])
    linked = link_adapter(target.template(index), adapter, target.plans[index], embed=target.embed)
    files = _write(linked, adapter.name, out)
    entry = BundledAdapter(
        name=adapter.name,
        digest=adapter.digest,
        foundation=target.foundation,
        rank=adapter.max_rank,
        modules=len(adapter.pairs),
        plan=index,
    )
    return files, entry


def _write(linked: Linked, name: str, out: Path) -> list[Artifact]:
    write_parts(out / f"{name}.pte", linked.program)
    files = [written(out, f"{name}.pte", "program", name)]
    if linked.data is not None:
        write_parts(out / f"{name}.ptd", linked.data)
        files.append(written(out, f"{name}.ptd", "adapter-data", name))
    return files


def write_parts(path: Path, parts: Sequence[Buffer]) -> None:
    """Write buffers one after another into a new file."""
    with path.open("xb") as file:
        file.writelines(parts)


def require_template(bundle: Bundle) -> None:
    """Raise `BundleError` if the bundle was exported without any room for adapters."""
    if not bundle.manifest.plans:
        raise BundleError(
            "The bundle has no template: it was exported without adapters and without reserved slots.",
            where=str(bundle.path),
            remedy="Export it with an adapter, or with --max-rank N --targets NAMES to reserve room.",
        )
