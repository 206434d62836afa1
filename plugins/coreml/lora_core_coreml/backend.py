"""The CoreML backend: one ExecuTorch program whose methods share a CoreML package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.kinds import Values
from lora_core.backend import Artifacts, Backend, Diagnosis, ExportJob, RoundWeight, WrittenFile
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError, BundleError, Problem
from lora_core.events import Emit, stage
from lora_core.intake.parsing import parsing
from lora_core_coreml import adapter_files, checks, diagnosis
from lora_core_coreml.linking import link
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.program import slot_tensors, store
from lora_core_coreml.program.inputs import with_adapters_as_inputs
from lora_core_coreml.program.naming import collisions, methods_of
from lora_core_coreml.program.object import ProgramObject
from lora_core_coreml.program.opened import OpenedProgram
from lora_core_coreml.program.slot_tensors import LinkAdapter
from lora_core_coreml.sharing import LOOSE_PACKAGES, CoremlSharing, fingerprint_of
from lora_core_coreml.storage import package, pte

if TYPE_CHECKING:
    from lora_core.runtime.session import Session

PROGRAM = "model.pte"


class CoremlBackend(Backend):
    """CoreML through ExecuTorch: the base and every adapter are methods of `model.pte`."""

    def diagnose(self) -> Diagnosis:
        """Say whether programs can be made here; running them is macOS's and iOS's business."""
        return diagnosis.diagnose()

    def check(self, job: ExportJob) -> Sequence[Problem]:
        """Return every problem of options and policy."""
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
            if options.inputs:
                return _with_inputs(program, job, out, emit)
            adapters = [slot_tensors.from_adapter(each, float16=options.float16) for each in job.adapters]
            with stage(emit, "link adapters"):
                files = _write(program, adapters, out, options)
            if program.templates:
                paths = store.save(program, out / store.FOLDER)
                files += [_written(out, path, "template") for path in paths]
        return _artifacts(program, [adapter.name for adapter in adapters], files)

    def link(self, bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
        """Write `model.pte` again with `adapters` beside those it has, from its templates alone; a file for each where
        they are its inputs.
        """
        options = _options(bundle)
        if options.inputs:
            return adapter_files.link(bundle, PROGRAM, adapters, out, emit, float16=options.float16)
        return _relink(bundle, adapters, frozenset(), out, emit)

    def unlink(self, bundle: Bundle, names: Sequence[str], out: Path, emit: Emit) -> Artifacts | None:
        """Write `model.pte` again without the adapters `names`, unless they are its inputs."""
        if _options(bundle).inputs:
            return None
        return _relink(bundle, (), frozenset(names), out, emit)

    def links_independently(self, bundle: Bundle) -> bool:
        """Say whether adapters are inputs of the program: then each is a file of its own."""
        return _options(bundle).inputs

    def template_files(self, bundle: Bundle, plan: int) -> Sequence[str]:
        """Return the templates, or the program whose inputs adapters are."""
        return (PROGRAM,) if _options(bundle).inputs else super().template_files(bundle, plan)

    def stored_values(self, bundle: Bundle, name: str) -> Mapping[str, Values]:
        """Read the adapter's file, which holds what was rounded once: rounding it again changes nothing."""
        if not _options(bundle).inputs:
            return super().stored_values(bundle, name)
        return adapter_files.slot_values(adapter_files.opened(bundle, name))

    def rounding(self, job: ExportJob, work: Path, emit: Emit) -> RoundWeight:
        """Return what quantization makes of a linear layer's weight."""
        from lora_core_coreml.rounding import rounding

        return rounding(job, work, emit)

    def open(self, bundle: Bundle, options: Any) -> Session:
        """Open the bundle for reference evaluation, or on CoreML itself if the options ask for it."""
        from lora_core_coreml.session import open_session

        return open_session(bundle, options)


def _options(bundle: Bundle) -> CoremlOptions:
    with parsing(bundle.path / "manifest.json"):
        return CoremlOptions(**bundle.manifest.options)


def _with_inputs(program: ProgramObject, job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Write a program whose inputs adapters are, and a file for each of them."""
    options: CoremlOptions = job.options
    fingerprint = foundation_fingerprint(program)
    files = _write(with_adapters_as_inputs(program, fingerprint), (), out, options)
    files += adapter_files.write_all(fingerprint, job.adapters, out, emit, float16=options.float16)
    return _artifacts(program, [placed.name for placed in job.adapters], files)


def _relink(bundle: Bundle, new: Sequence[PlacedAdapter], leaving: frozenset[str], out: Path, emit: Emit) -> Artifacts:
    """Write the program of `bundle` into `out` with the adapters `new` (in place of any of their names) and without
    those that are `leaving`.
    """
    options = _options(bundle)
    with stage(emit, "link adapters"):
        opened = OpenedProgram.read(bundle.file(PROGRAM))
        with parsing(bundle.path / store.FOLDER, "The template"):
            program = _stored(bundle, opened)
            constants = program.constant_methods
        problems = collisions([placed.name for placed in new], program.multifunction, constants)
        if problems:
            raise AdapterError(problems)
        gone = leaving | {placed.name for placed in new}
        residents = {each.name: each.plan for each in bundle.manifest.adapters if each.name not in gone}
        with parsing(opened.path):
            linked = slot_tensors.from_program(opened, program, residents)
        linked += [slot_tensors.from_adapter(placed, float16=options.float16) for placed in new]
        with parsing(opened.path):
            files = _write(program, linked, out, options)
    return _artifacts(program, [adapter.name for adapter in linked], files)


def _stored(bundle: Bundle, opened: OpenedProgram) -> ProgramObject:
    folder = bundle.path / store.FOLDER
    for name in store.file_names(len(opened.packages)):
        bundle.file(f"{store.FOLDER}/{name}")  # refuses what the manifest does not list, so what nobody looked at
    program = store.load(opened, folder)
    if foundation_fingerprint(program) != bundle.manifest.foundation:
        raise BundleError("The template was made for another base", where=str(folder), remedy="Export again.")
    return program


def _write(
    program: ProgramObject, adapters: Sequence[LinkAdapter], out: Path, options: CoremlOptions
) -> list[WrittenFile]:
    """Write the program, and with `--emit-mlpackage` its CoreML packages beside it, for Xcode."""
    path = out / PROGRAM
    files = [WrittenFile(path=PROGRAM, role="program", sha256=link(program, adapters, path))]
    if options.emit_mlpackage:
        for index, found in enumerate(package.stored_packages(pte.read(path))):
            root = found.extract(out / LOOSE_PACKAGES / f"partition_{index}")
            files += [_written(out, each, LOOSE_PACKAGES) for each in sorted(root.rglob("*")) if each.is_file()]
    return files


def _written(out: Path, path: Path, role: str) -> WrittenFile:
    return WrittenFile(path=path.relative_to(out).as_posix(), role=role)


def _artifacts(program: ProgramObject, names: Sequence[str], files: Sequence[WrittenFile]) -> Artifacts:
    return Artifacts(
        foundation=foundation_fingerprint(program),
        files=tuple(files),
        methods=methods_of([None, *sorted(names)], PROGRAM, program.multifunction),
        versions=diagnosis.installed(),
        detail={"foundation_sizes": [foundation.size for foundation in program.foundations]},
    )


def foundation_fingerprint(program: ProgramObject) -> str:
    """Return the SHA-256 hex that identifies the foundations of a program."""
    return fingerprint_of([foundation.sha256 for foundation in program.foundations])
