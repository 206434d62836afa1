"""Checks of linking: adding is exporting, removing undoes it, every tensor counts."""

from __future__ import annotations

import numpy as np

import lora_core
from lora_core.adapters.reference import AdapterReference
from lora_core.bundle.bundle import Bundle
from lora_core.errors import UnsupportedError
from lora_core.testing.check import Broken, Check, expect_refusal
from lora_core.testing.comparison import expect_same_files
from lora_core.testing.workshop import Workshop


def adding_is_exporting(workshop: Workshop) -> None:
    """Add one adapter to a bundle with the other, and both to a bundle with none, for every policy."""
    for policy in workshop.policies:
        expected = workshop.export(("alice", "bob"), policy=policy)
        for given, added in ((("alice",), ("bob",)), (("bob",), ("alice",)), ((), ("alice", "bob"))):
            path = workshop.copy(workshop.export(given, policy=policy), f"add-{policy}-{'-'.join(given)}")
            workshop.add(path, [workshop.adapter(name) for name in added])
            expect_same_files(expected.path, path, f"Policy {policy}, {' and '.join(added)} added")


def removing_undoes_adding(workshop: Workshop) -> None:
    """Remove adapters and compare with a bundle that never had them."""
    for removed, left in ((("bob",), ("alice",)), (("alice", "bob"), ())):
        path = workshop.copy(workshop.export(("alice", "bob")), f"remove-{'-'.join(removed)}")
        lora_core.remove(path, removed, emit=workshop.emit, hub=workshop.hub)
        expect_same_files(workshop.export(left).path, path, f"{' and '.join(removed)} removed")


def every_tensor_counts(workshop: Workshop) -> None:
    """Change each tensor of an adapter alone: what is stored for the adapter must change with it."""
    plain = workshop.adapter("alice")
    changed = _variants(workshop, plain)
    names = {tensor: f"changed{index}" for index, tensor in enumerate(changed)}
    references = [AdapterReference(name=names[tensor], directory=changed[tensor].directory) for tensor in changed]
    bundle = workshop.add(workshop.copy(workshop.export(()), "every-tensor"), [plain, *references])
    original = _stored(workshop, bundle, plain.name)
    unused = [tensor for tensor, name in names.items() if _stored(workshop, bundle, name) == original]
    if unused:
        raise Broken(f"Changing these tensors changes nothing that is stored: {', '.join(unused)}")


def undeclared_linking_is_refused(workshop: Workshop) -> None:
    """Link although it is not declared."""
    bundle = workshop.export(())
    out = workshop.root / "undeclared-link"
    out.mkdir()
    expect_refusal(
        UnsupportedError,
        lambda: workshop.backend.link(bundle, (), out, workshop.emit),
        "Linking is not declared, and `link` does not raise UnsupportedError",
    )


def _variants(workshop: Workshop, plain: AdapterReference) -> dict[str, AdapterReference]:
    """Return for each tensor of `plain` an adapter in which that one alone is another."""
    import shutil

    from safetensors.numpy import load_file, save_file

    assert plain.directory is not None
    tensors = load_file(plain.directory / "adapter_model.safetensors")
    variants = {}
    for index, name in enumerate(sorted(tensors)):
        directory = workshop.root / "variants" / str(index)
        shutil.copytree(plain.directory, directory)
        # Not a multiple: a quantized tensor with a scale of its own would store the same integers.
        values = tensors[name].copy()
        values.flat[0] = np.abs(values).max() * np.float32(2)
        save_file({**tensors, name: values}, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        variants[name] = AdapterReference(name=plain.name, directory=directory)
    return variants


def _stored(workshop: Workshop, bundle: Bundle, adapter: str) -> list[str]:
    """Return the hashes of the blobs that the methods of `adapter` read; the base's are the same for all."""
    own = {method.name for method in bundle.manifest.methods if method.adapter == adapter}
    return sorted(blob.sha256 for blob in workshop.backend.sharing.blobs(bundle) if blob.methods & own)


CHECKS = (
    Check(
        name="add",
        claim="Adding an adapter writes the bytes of a full export.",
        run=adding_is_exporting,
        applies=lambda workshop: workshop.links,
    ),
    Check(
        name="remove",
        claim="Removing an adapter undoes adding it.",
        run=removing_undoes_adding,
        applies=lambda workshop: workshop.links,
    ),
    Check(
        name="tensors",
        claim="Every tensor of an adapter counts.",
        run=every_tensor_counts,
        applies=lambda workshop: workshop.links,
    ),
    Check(
        name="no link",
        claim="Linking is not declared, and refused.",
        run=undeclared_linking_is_refused,
        applies=lambda workshop: not workshop.links,
    ),
)
