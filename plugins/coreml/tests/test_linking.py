"""Adapters are linked: a program is a function of base, templates and adapters, however it came about."""

from collections import Counter

import attrs
import pytest
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.storage import blobfile, flatc, mil, package, pte

from lora_core.bundle.bundle import Bundle
from lora_core.events import ignore


def program_bytes(bundle: Bundle) -> bytes:
    return (bundle.path / "model.pte").read_bytes()


def test_adding_an_adapter_writes_the_bytes_of_an_export_with_it(exporter, bundle: Bundle) -> None:
    alone = exporter.export(["shout"], plan_of=["shout", "pirate"])
    added = exporter.add(alone, ["pirate"])
    assert program_bytes(added) == program_bytes(bundle)


def test_adding_to_a_bundle_without_adapters_writes_the_bytes_of_an_export_with_them(exporter, bundle: Bundle) -> None:
    empty = exporter.export([], plan_of=["shout", "pirate"])
    assert program_bytes(exporter.add(empty, ["pirate", "shout"])) == program_bytes(bundle)


def test_removing_an_adapter_writes_the_bytes_of_an_export_without_it(exporter, bundle: Bundle, tmp_path) -> None:
    alone = exporter.export(["shout"], plan_of=["shout", "pirate"])
    CoremlBackend().unlink(bundle, ["pirate"], tmp_path, ignore)
    assert (tmp_path / "model.pte").read_bytes() == program_bytes(alone)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what a link opens, each of which costs time in proportion to the whole program."""
    counts: Counter[str] = Counter()

    def counting(module, name: str):
        function = getattr(module, name)

        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counting(flatc, "run")
    counting(package, "stored_packages")
    counting(mil, "parse_model")
    counting(mil, "_blocks")
    return counts


def test_a_link_opens_the_program_once_for_all_residents(exporter, bundle: Bundle, opened: Counter[str]) -> None:
    empty = exporter.export([], plan_of=["shout", "pirate"])
    (shout,) = exporter.placed(empty, ["shout"])
    residents = [attrs.evolve(shout, adapter=attrs.evolve(shout.adapter, name=f"r{number}")) for number in range(8)]
    (added,) = exporter.placed(empty, ["pirate"])
    counts = []
    for count in (1, 8):
        full = exporter.link(empty, residents[:count])
        opened.clear()
        again = exporter.link(full, [added])
        assert len(again.manifest.adapters) == count + 1
        counts.append(dict(opened))
    assert counts[0] == counts[1]
    # What a template refers to is looked for once, and then known of every method that is made of it.
    assert counts[0] == {"run": 2, "stored_packages": 1, "parse_model": 2, "_blocks": 1}


def test_a_removal_opens_the_program_once_for_all_who_stay(bundle: Bundle, opened: Counter[str], tmp_path) -> None:
    CoremlBackend().unlink(bundle, ["pirate"], tmp_path, ignore)
    assert opened == {"run": 2, "stored_packages": 1, "parse_model": 2, "_blocks": 1}


def test_references_are_found_again_at_their_places_in_every_copy(bundle: Bundle) -> None:
    [stored] = package.stored_packages(pte.read(bundle.path / "model.pte"))
    for function in mil.parse_model(stored.read(package.MODEL)).mlProgram.functions.values():
        walked = [reference.offset for _, reference in mil.blob_references(function)]
        assert walked
        assert [place.of(function).offset for place in mil.reference_places(function)] == walked


def test_a_place_of_no_reference_is_refused() -> None:
    function = mil.new_model().mlProgram.functions["f"]
    function.opset = "CoreML7"
    function.block_specializations["CoreML7"].operations.add()
    with pytest.raises(ValueError, match="refers to no weight"):
        mil.ReferencePlace(above=(), operation=0, key="val", binding=None).of(function)


def test_residents_keep_their_bytes_when_another_comes(exporter, bundle: Bundle) -> None:
    (shout,) = exporter.placed(bundle, ["shout"])
    twin = attrs.evolve(shout, adapter=attrs.evolve(shout.adapter, name="twin"))
    added = exporter.link(bundle, [twin])
    stored = {blob.sha256: blob.methods for blob in CoremlBackend().sharing.blobs(added)}
    for blob in CoremlBackend().sharing.blobs(bundle):
        assert blob.methods <= stored[blob.sha256]


def test_the_foundation_has_the_same_bytes_whatever_the_adapters(exporter, bundle: Bundle) -> None:
    base = exporter.export([])
    wide = exporter.export(["whole"])
    assert base.manifest.foundation == bundle.manifest.foundation == wide.manifest.foundation
    sharing = CoremlBackend().sharing
    for each in (base, bundle, wide):
        assert sharing.fingerprint(each) == each.manifest.foundation


def test_no_base_byte_is_stored_twice(bundle: Bundle) -> None:
    blobs = list(CoremlBackend().sharing.blobs(bundle))
    hashes = [blob.sha256 for blob in blobs]
    assert len(hashes) == len(set(hashes))
    assert all(blob.methods for blob in blobs)
    base = [blob for blob in blobs if "forward" in blob.methods]
    assert base
    assert all(blob.methods == {"forward", "shout", "pirate"} for blob in base)


def test_an_adapter_owns_its_own_matrices(bundle: Bundle) -> None:
    blobs = list(CoremlBackend().sharing.blobs(bundle))
    for name in ("shout", "pirate"):
        own = [blob for blob in blobs if blob.methods == {name}]
        assert sum(blob.size for blob in own) == 2 * sum(slot.size // 4 for slot in bundle.manifest.plans[0].slots)
        assert {blob.group for blob in own} == {"lora"}


def test_adapters_that_differ_by_one_bit_are_not_merged(exporter, bundle: Bundle) -> None:
    """coremltools merges constants across functions when they are nearly equal; a link compares bytes."""
    from safetensors.numpy import load_file, save_file

    twin = exporter.folder("twin") / "twin"
    twin.mkdir()
    source = exporter.adapters["shout"]
    (twin / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    name = next(key for key in sorted(tensors) if "lora_A" in key)
    stored = tensors[name].astype("float16")
    stored.view("uint16")[-1, -1] ^= 1
    tensors[name] = stored.astype("float32")
    save_file(tensors, twin / "adapter_model.safetensors")
    with_twin = attrs.evolve(exporter, adapters={**exporter.adapters, "twin": twin})
    added = with_twin.add(bundle, ["twin"])
    blobs = list(CoremlBackend().sharing.blobs(added))
    assert len([blob for blob in blobs if blob.methods == {"twin"}]) == 1
    assert len([blob for blob in blobs if blob.methods == {"twin", "shout"}]) == 2 * len(tensors) // 2 - 1


def test_executorch_unpacks_the_package_that_a_link_wrote(bundle: Bundle, tmp_path) -> None:
    from executorch.backends.apple.coreml import executorchcoreml

    stored = pte.read(bundle.path / "model.pte")
    data = stored.read_segment(stored.program["named_data"][0]["segment_index"])
    assert executorchcoreml.unflatten_directory_contents(data, str(tmp_path))
    (found,) = package.stored_packages(stored)
    root = tmp_path / "lowered_module_partition_0"
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == set(found.files)
    for name in found.files:
        assert (root / name).read_bytes() == found.read(name)


def test_every_function_refers_to_weights_of_its_declared_shape(bundle: Bundle) -> None:
    (found,) = package.stored_packages(pte.read(bundle.path / "model.pte"))
    model = mil.parse_model(found.read(package.MODEL))
    weights = found.read(package.WEIGHTS)
    assert set(model.mlProgram.functions) == {"forward", "shout", "pirate"}
    for function in model.mlProgram.functions.values():
        for operation in mil.operations(function):
            value = operation.attributes.get("val")
            if value is None or value.WhichOneof("value") != "blobFileValue":
                continue
            count = 1
            for dimension in value.type.tensorType.dimensions:
                count *= dimension.constant.size
            blob = blobfile.blob_at(weights, value.blobFileValue.offset, where="test")
            assert blob.size == 2 * count, operation.outputs[0].name
