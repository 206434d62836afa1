"""Link adapters into the templates of a split bundle: no torch, no ExecuTorch, no base weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.kinds import Values
from lora_core.backend import Artifacts, WrittenFile
from lora_core.bundle.bundle import Bundle, Method
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.intake.parsing import parsing
from lora_core.pte import Buffer
from lora_core_xnnpack.artifacts import LINK_STAGE, require_template, write_parts
from lora_core_xnnpack.files.data_file import DataBlob, serialize
from lora_core_xnnpack.files.marks import program_marks
from lora_core_xnnpack.slot_tensors import linkable_values
from lora_core_xnnpack.split.relocations import SplitTemplate
from lora_core_xnnpack.split.rewriting import rewrite


@attrs.frozen(kw_only=True)
class LinkedFiles:
    """What linking one adapter gave: the program's file, and the adapter's data file (None if embedded)."""

    program: Sequence[Buffer]
    data: Sequence[Buffer] | None


@attrs.frozen(kw_only=True)
class SplitTarget:
    """What adapters are linked into: `template` gives the template of a plan by its index."""

    template: Callable[[int], SplitTemplate]
    foundation: str
    embed: bool

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> SplitTarget:
        """Return the target that a split bundle holds; templates are read on first use."""
        require_template(bundle)
        opened: dict[int, SplitTemplate] = {}

        def template(index: int) -> SplitTemplate:
            if index not in opened:
                program, table = template_files(index)
                foundation = bundle.manifest.foundation
                opened[index] = SplitTemplate.read(bundle.file(program), bundle.file(table), foundation)
            return opened[index]

        return cls(
            template=template,
            foundation=bundle.manifest.foundation,
            embed=bundle.manifest.options.get("adapter_data") == "embedded",
        )


def template_files(index: int) -> tuple[str, str]:
    """Return the paths in a bundle of a plan's template program and relocation table."""
    return f"template/{index}.pte", f"template/{index}.json"


def write_template(template: SplitTemplate, index: int, foundation: str, out: Path) -> tuple[WrittenFile, WrittenFile]:
    """Write the two files of a template, which goes with `foundation`, under `out`."""
    program, table = template_files(index)
    (out / program).parent.mkdir(exist_ok=True)
    (out / program).write_bytes(template.program)
    (out / table).write_text(template.table.to_json(foundation), "utf-8")
    return WrittenFile(path=program, role="template"), WrittenFile(path=table, role="relocations")


def link_values(template: SplitTemplate, name: str, values: Mapping[str, Values], *, embed: bool) -> LinkedFiles:
    """Link the values of every slot of the template, by module and part, at the template's shapes, as adapter `name`.

    With `embed` the adapter's data lies in the program file, else in a data file of its own.
    """
    tensors = [tensor for tensor in template.table.tensors if not tensor.inside]
    inside = [(tensor, tensor.blob(values).data) for tensor in template.table.tensors if tensor.inside]
    hashed: dict[tuple[int, bool], DataBlob] = {}  # by identity: slots without effect share their tensors
    blobs = []
    for tensor in tensors:
        identity = id(values[tensor.module][tensor.source]), tensor.source == tensor.part
        hashed[identity] = hashed.get(identity) or tensor.blob(values)
        blobs.append(hashed[identity])
    changes = [(tensor.sites, blob.key) for tensor, blob in zip(tensors, blobs, strict=True)]
    known = set(template.table.foundation_keys)
    stored = list({blob.key: blob for blob in blobs if blob.key not in known}.values())
    placed = [(site, data) for tensor, data in inside for site in tensor.sites]
    named = [*(stored if embed else ()), *program_marks(template.table.mark, [name])]
    program = rewrite(template, changes, named, placed)
    return LinkedFiles(program=program, data=None if embed else serialize(stored))


def link_all(target: SplitTarget, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
    """Link `adapters` one after another into `out`; each is read, linked, written and let go."""
    files: list[WrittenFile] = []
    if adapters:
        with stage(emit, LINK_STAGE):
            for done, adapter in enumerate(adapters, start=1):
                template, values = target.template(adapter.index), linkable_values(adapter)
                with parsing(f"template/{adapter.index}.json", "The template"):
                    linked = link_values(template, adapter.name, values, embed=target.embed)
                files += _write(linked, adapter.name, out)
                emit(StageAdvanced(stage=LINK_STAGE, done=done, total=len(adapters)))
    return Artifacts(
        foundation=target.foundation,
        files=tuple(files),
        methods=tuple(Method(name=each.name, program=f"{each.name}.pte", adapter=each.name) for each in adapters),
    )


def _write(linked: LinkedFiles, name: str, out: Path) -> list[WrittenFile]:
    write_parts(out / f"{name}.pte", linked.program)
    files = [WrittenFile(path=f"{name}.pte", role="program", adapter=name)]
    if linked.data is not None:
        write_parts(out / f"{name}.ptd", linked.data)
        files.append(WrittenFile(path=f"{name}.ptd", role="adapter-data", adapter=name))
    return files
