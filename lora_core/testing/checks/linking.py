"""Checks of linking: adding is exporting, removing undoes it, every tensor counts, and it is light."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

import lora_core
from lora_core.adapters.names import name_problem
from lora_core.adapters.reference import AdapterReference
from lora_core.bundle.bundle import Bundle
from lora_core.errors import LoraCoreError, UnsupportedError
from lora_core.testing.check import Check, expect_refusal, links
from lora_core.testing.comparison import differences
from lora_core.testing.materials import ADAPTERS
from lora_core.testing.probe import Probe, Seen
from lora_core.testing.verdict import Broken
from lora_core.testing.workshop import Workshop

WRITERS = frozenset({"onnxruntime"})
"""What a link may import although a descriptor may not: it takes a tenth of a second, and writes adapters."""


def adding_is_exporting(workshop: Workshop) -> None:
    """Add all adapters to a bundle without any, in two steps, for every policy."""
    for policy in workshop.policies:
        path = workshop.copy(workshop.bare(policy))
        workshop.add(path, ADAPTERS[2:])
        workshop.add(path, ADAPTERS[:2])
        found = differences(workshop.full(policy).path, path)
        if found:
            raise Broken(f"With policy {policy}, added adapters are not what is exported: {', '.join(found)}")


def removing_undoes_adding(workshop: Workshop) -> None:
    """Remove all adapters in two steps and compare with a bundle that never had any."""
    path = workshop.copy(workshop.full())
    lora_core.remove(path, ADAPTERS[1:3], emit=workshop.tell, hub=workshop.hub)
    left = [each.name for each in lora_core.inspect(path, hub=workshop.hub).bundle.manifest.adapters]
    if sorted(left) != sorted({*ADAPTERS} - {*ADAPTERS[1:3]}):
        raise Broken(f"After two adapters were removed, there are {', '.join(left) or 'none'}")
    lora_core.remove(path, left, emit=workshop.tell, hub=workshop.hub)
    found = differences(workshop.bare().path, path)
    if found:
        raise Broken(f"After all adapters were removed, the bundle is not as if it never had any: {', '.join(found)}")


def every_tensor_counts(workshop: Workshop) -> None:
    """Change each tensor of an adapter alone: what is stored for the adapter must change with it."""
    for name in ("alice", "bob"):
        plain = workshop.materials.adapter(name)
        changed = _variants(workshop, plain)
        names = {tensor: f"changed{index}" for index, tensor in enumerate(changed)}
        references = [AdapterReference(name=names[tensor], directory=path) for tensor, path in changed.items()]
        path = workshop.copy(workshop.bare())
        bundle = lora_core.add(path, [plain, *references], emit=workshop.tell, hub=workshop.hub)
        original = _stored(workshop, bundle, plain.name)
        unused = [tensor for tensor, other in names.items() if _stored(workshop, bundle, other) == original]
        if unused:
            raise Broken(f"Changing these tensors changes nothing that is stored: {', '.join(unused)}")


def descriptors_are_light(workshop: Workshop) -> None:
    """Import hooks and options in a fresh process, and look at what that imported."""
    heavy = _seen(workshop).described
    if heavy:
        raise Broken(f"Importing the descriptors and the options imports {', '.join(sorted(heavy))}")


def linking_is_light(workshop: Workshop) -> None:
    """Link in a fresh process, the model gone, and look at what it imports and opens."""
    seen = _seen(workshop)
    if seen.error:
        raise Broken(f"Without the model, linking fails: {seen.error}")
    heavy = seen.linked - seen.described - WRITERS
    if heavy:
        raise Broken(f"Linking imports {', '.join(sorted(heavy))}")
    model = str(workshop.materials.model())
    read = sorted({path for path in seen.opened if path.startswith(model)})
    if read:
        raise Broken(f"Linking reads the model: {', '.join(read)}")


def own_names_are_reserved(workshop: Workshop) -> None:
    """Call an adapter as methods and files are called: refused, or it leaves alone what any adapter leaves alone."""
    bare = workshop.bare()
    manifest = bare.manifest
    words = {method.name for method in manifest.methods}
    words |= {part for each in manifest.artifacts for part in Path(each.path).with_suffix("").parts}
    directory = workshop.materials.adapter("alice").directory
    assert directory is not None, "alice is a directory"
    harmless = lora_core.add(workshop.copy(bare), {"alice": directory}, emit=workshop.tell, hub=workshop.hub).manifest
    kept = {*manifest.artifacts, *manifest.methods} & {*harmless.artifacts, *harmless.methods}
    for word in sorted(words):
        if name_problem(word, workshop.spec.reserved) is not None:
            continue
        try:
            added = lora_core.add(workshop.copy(bare), {word: directory}, emit=workshop.tell, hub=workshop.hub)
        except LoraCoreError as error:
            raise Broken(f"An adapter called {word!r} is not refused by the descriptor, and fails: {error}") from error
        if kept - {*added.manifest.artifacts, *added.manifest.methods}:
            raise Broken(f"An adapter called {word!r} replaces a file or a method of the base")


def undeclared_linking_is_refused(workshop: Workshop) -> None:
    """Link although it is not declared."""
    out = workshop.place()
    out.mkdir()
    bundle = workshop.bare()
    expect_refusal(
        UnsupportedError,
        lambda: workshop.backend.link(bundle, (), out, workshop.tell),
        "`link`, which is not declared,",
    )


def _seen(workshop: Workshop) -> Seen:
    return workshop.once("probe", make=lambda: _look(workshop))


def _look(workshop: Workshop) -> Seen:
    from lora_core.pipeline.batches import LinkBatch
    from lora_core.pipeline.workers import LinkWork

    entry = workshop.hub.backends.entry(workshop.backend_name)
    options = [entry.value.options, *([entry.value.session_options] if entry.value.session_options else [])]
    modules = (entry.origin.module, *(target.partition(":")[0] for target in options))
    if not workshop.links:
        return Probe(modules=modules).send()
    bundle = workshop.bare()
    # Adapters are read where they lie; what is taken away is the model alone.
    batch = LinkBatch(references=tuple(workshop.materials.adapter(name) for name in ADAPTERS), out=workshop.place())
    formats = tuple(workshop.hub.adapter_formats.entry(name) for name in workshop.hub.adapter_formats)
    work = LinkWork(bundle=bundle, backend=entry, formats=formats)
    with workshop.materials.taken_away(adapters=False):
        return Probe(modules=modules, work=work, batch=batch).send()


def _variants(workshop: Workshop, plain: AdapterReference) -> dict[str, Path]:
    """Return for each tensor of `plain` the directory of an adapter in which that one alone is another."""
    from safetensors.numpy import load_file, save_file

    assert plain.directory is not None, "a stored adapter"
    tensors = load_file(plain.directory / "adapter_model.safetensors")
    variants = {}
    for name in sorted(tensors):
        directory = workshop.place()
        shutil.copytree(plain.directory, directory)
        # Not a multiple: a quantized tensor with a scale of its own would store the same integers.
        values = tensors[name].copy()
        values.flat[-1] = np.abs(values).max() * np.float32(2)
        save_file({**tensors, name: values}, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        variants[name] = directory
    return variants


def _stored(workshop: Workshop, bundle: Bundle, adapter: str) -> list[str]:
    """Return the hashes of the blobs that the methods of `adapter` read; the base's are the same for all."""
    own = {method.name for method in bundle.manifest.methods if method.adapter == adapter}
    return sorted(blob.sha256 for blob in workshop.blobs(bundle) if blob.methods & own)


CHECKS = (
    Check(
        id="add-is-export",
        claim="Adding adapters writes the bytes of a full export.",
        run=adding_is_exporting,
        applies=links,
    ),
    Check(
        id="remove-undoes-add", claim="Removing adapters undoes adding them.", run=removing_undoes_adding, applies=links
    ),
    Check(id="every-tensor", claim="Every tensor of an adapter counts.", run=every_tensor_counts, applies=links),
    Check(id="descriptors-light", claim="Descriptors and options import nothing heavy.", run=descriptors_are_light),
    Check(
        id="link-light",
        claim="Linking needs neither the model nor torch.",
        run=linking_is_light,
        applies=links,
    ),
    Check(
        id="names-reserved",
        claim="No adapter's name replaces a file or a method of the backend's own.",
        run=own_names_are_reserved,
        applies=links,
    ),
    Check(
        id="link-undeclared",
        claim="Linking is not declared, and refused.",
        run=undeclared_linking_is_refused,
        applies=lambda workshop: not workshop.links,
    ),
)
