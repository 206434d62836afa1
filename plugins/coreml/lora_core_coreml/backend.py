"""The CoreML backend: one ExecuTorch program whose methods share a CoreML package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import plan_for
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts, Backend, Diagnosis, ExportJob
from lora_core.bundle.bundle import Artifact, Bundle, BundledAdapter, Method
from lora_core.errors import BundleError, Problem
from lora_core.events import Emit, stage
from lora_core_coreml import checks, diagnosis
from lora_core_coreml.linking import LinkAdapter, link
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.program import matrices, store
from lora_core_coreml.program.naming import kinds, method_name
from lora_core_coreml.program.object import ProgramObject
from lora_core_coreml.sharing import CoremlSharing
from lora_core_coreml.storage import package, pte

if TYPE_CHECKING:
    from lora_core.runtime.session import Session

PROGRAM = "model.pte"
_PACKAGES = "mlpackage"


class CoremlBackend(Backend):
    """CoreML through ExecuTorch: the base and every adapter are methods of `model.pte`."""

    def diagnose(self) -> Diagnosis:
        """Say whether programs can be made here; running them is macOS's and iOS's business."""
        return diagnosis.diagnose()

    def check(self, job: ExportJob) -> Sequence[Problem]:
        """Return every problem of options, policy and adapter names."""
        return checks.problems(job)

    @property
    def sharing(self) -> CoremlSharing:
        """How the package stores the base once."""
        return CoremlSharing()

    def export(self, job: ExportJob, out: Path, emit: Emit) -> Artifacts:
        """Lower the base's methods and one template a plan, then link every adapter."""
        from lora_core_coreml.exporting import lowered_program

        options: CoremlOptions = job.options
        with lowered_program(job, emit) as program:
            adapters = [_linkable(adapter, job.plans, options.float16) for adapter in job.adapters]
            with stage(emit, "link adapters"):
                files = [_write(program, adapters, out)]
            if program.templates:
                paths = store.save(program, out / store.FOLDER)
                files += [_artifact(out, path, "template") for path in paths]
        if options.emit_mlpackage:
            files += _emit_packages(out)
        return _artifacts(program, adapters, job.adapters, files)

    def link(self, bundle: Bundle, adapters: Sequence[Adapter], out: Path, emit: Emit) -> Artifacts:
        """Write `model.pte` again with `adapters` beside those it has, from its templates alone."""
        options = _options(bundle)
        plans = bundle.manifest.plans
        problems = checks.names(bundle, adapters, options)
        if problems:
            raise BundleError(problems)
        with stage(emit, "link adapters"):
            program = _stored(bundle)
            new = [_linkable(adapter, plans, options.float16) for adapter in adapters]
            old = _existing(bundle, program, leave_out={adapter.name for adapter in adapters})
            files = [_write(program, [*old, *new], out)]
        if options.emit_mlpackage:
            files += _emit_packages(out)
        return _artifacts(program, [*old, *new], adapters, files)

    def unlink(self, bundle: Bundle, names: Sequence[str], out: Path, emit: Emit) -> Artifacts | None:
        """Write `model.pte` again without the adapters `names`."""
        with stage(emit, "link adapters"):
            program = _stored(bundle)
            remaining = _existing(bundle, program, leave_out=set(names))
            files = [_write(program, remaining, out)]
        if _options(bundle).emit_mlpackage:
            files += _emit_packages(out)
        return _artifacts(program, remaining, (), files)

    def open(self, bundle: Bundle, options: Mapping[str, Any]) -> Session:
        """Open the bundle for reference evaluation; on macOS, on CoreML itself."""
        from lora_core_coreml.session import open_session

        return open_session(bundle, options)


def _linkable(adapter: Adapter, plans: Sequence[SlotPlan], float16: bool) -> LinkAdapter:
    index = plan_for(plans, adapter)
    if index is None:
        problems = plans[0].misfits(adapter) if plans else [Problem(what="The bundle has no template")]
        raise BundleError(problems)
    return matrices.from_adapter(adapter, plans[index], index, float16=float16)


def _stored(bundle: Bundle) -> ProgramObject:
    folder = bundle.path / store.FOLDER
    if not folder.is_dir():
        raise BundleError(
            "The bundle has no template, so no adapter can be added or removed",
            where=str(bundle.path),
            remedy="Export with an adapter, or reserve room with --max-rank and --targets.",
        )
    program = store.load(bundle.path / PROGRAM, folder)
    if foundation_fingerprint(program) != bundle.manifest.foundation:
        raise BundleError("The template was made for another base", where=str(folder), remedy="Export again.")
    return program


def _existing(bundle: Bundle, program: ProgramObject, leave_out: set[str]) -> list[LinkAdapter]:
    path = bundle.path / PROGRAM
    return [
        matrices.from_program(path, program, adapter.name, adapter.plan)
        for adapter in bundle.manifest.adapters
        if adapter.name not in leave_out
    ]


def _write(program: ProgramObject, adapters: Sequence[LinkAdapter], out: Path) -> Artifact:
    path = out / PROGRAM
    sha256 = link(program, adapters, path)
    return Artifact(path=PROGRAM, role="program", sha256=sha256, size=path.stat().st_size)


def _emit_packages(out: Path) -> list[Artifact]:
    """Write the CoreML packages of `out`'s program beside it, for Xcode."""
    files = []
    for index, found in enumerate(package.stored_packages(pte.read(out / PROGRAM))):
        root = found.extract(out / _PACKAGES / f"partition_{index}")
        files += [_artifact(out, path, "mlpackage") for path in sorted(root.rglob("*")) if path.is_file()]
    return files


def _artifact(out: Path, path: Path, role: str) -> Artifact:
    # The pipeline hashes files whose hash is left empty.
    return Artifact(path=path.relative_to(out).as_posix(), role=role, sha256="", size=path.stat().st_size)


def _artifacts(
    program: ProgramObject, linked: Sequence[LinkAdapter], adapters: Sequence[Adapter], files: Sequence[Artifact]
) -> Artifacts:
    fingerprint = foundation_fingerprint(program)
    plans = {adapter.name: adapter.plan for adapter in linked}
    wanted = kinds(program.multifunction)
    methods = [Method(name=kind, program=PROGRAM) for kind in wanted]
    for name in sorted(plans):
        methods += [
            Method(name=method_name(name, kind, program.multifunction), program=PROGRAM, adapter=name)
            for kind in wanted
        ]
    return Artifacts(
        foundation=fingerprint,
        artifacts=tuple(files),
        adapters=tuple(
            BundledAdapter(
                name=adapter.name,
                digest=adapter.digest,
                foundation=fingerprint,
                rank=adapter.max_rank,
                modules=len(adapter.pairs),
                plan=plans[adapter.name],
            )
            for adapter in adapters
        ),
        methods=tuple(methods),
        versions=diagnosis.installed(),
        detail={"foundation_sizes": [foundation.size for foundation in program.foundations]},
    )


def foundation_fingerprint(program: ProgramObject) -> str:
    """Return the SHA-256 hex that identifies the foundations of a program."""
    from lora_core_coreml.sharing import fingerprint_of

    return fingerprint_of([foundation.sha256 for foundation in program.foundations])


def _options(bundle: Bundle) -> CoremlOptions:
    return CoremlOptions(**bundle.manifest.options)
