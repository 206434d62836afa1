"""Beside ExecuTorch's own positional weight sharing: the same functions and weights, but for what it merges as near."""

from pathlib import Path

import attrs
import pytest
from lora_core_coreml.lowering import base
from lora_core_coreml.lowering.fast import fast_lowering
from lora_core_coreml.lowering.method import export_method
from lora_core_coreml.lowering.sentinels import fill
from lora_core_coreml.quiet import quiet
from lora_core_coreml.storage import blobfile, mil, package, pte
from lora_core_coreml.storage.blobfile import BlobKey
from safetensors.numpy import load_file, save_file

from lora_core.bundle.bundle import Bundle
from lora_core.models.injection import eject

# coremltools 9.0 merges float16 constants that are 6e-8 apart or less; this is the smallest number above 0.
STEP = 2.0**-24
ADAPTERS = ("shout", "pirate")


@pytest.fixture(scope="module")
def with_twins(exporter):
    """The exporter with `first` and `second`: one adapter but for the last element of each A, 0 there and STEP here."""
    source = exporter.adapters["shout"]
    folders = {}
    for twin, last in (("first", 0.0), ("second", STEP)):
        folders[twin] = exporter.folder(twin) / twin
        folders[twin].mkdir()
        (folders[twin] / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
        tensors = load_file(source / "adapter_model.safetensors")
        for name in tensors:
            if "lora_A" in name:
                tensors[name][-1, -1] = last
        save_file(tensors, folders[twin] / "adapter_model.safetensors")
    return attrs.evolve(exporter, adapters={**exporter.adapters, **folders}, made={})


@pytest.fixture(scope="module")
def theirs(with_twins, tmp_path_factory) -> dict[str, list[BlobKey]]:
    """What each function refers to after ExecuTorch lowered forward, first and second as methods of one program."""
    path = tmp_path_factory.mktemp("theirs") / "model.pte"
    path.write_bytes(peer_program(with_twins.job(["first", "second"])))
    return stored_references(path)


def peer_program(job) -> bytes:
    """Lower the base and each adapter of `job` by ExecuTorch's partitioner with its defaults."""
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

    prepared = base.prepare(job)
    example = prepared.inputs(prepared.shapes[0])
    programs = {"forward": export_method(prepared.module, example)}
    for placed in job.adapters:
        values = placed.values_by_module()
        fill(prepared.module, placed.plan, prepared.paths, values, float16=prepared.float16)
        programs[placed.name] = export_method(prepared.module, example)
        eject(prepared.module)
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        compute_unit=ct.ComputeUnit.CPU_AND_NE,
    )
    with quiet(), fast_lowering():  # which changes no byte of it
        edge = to_edge_transform_and_lower(
            programs,
            partitioner=[CoreMLPartitioner(compile_specs=specs, take_over_mutable_buffer=False)],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        return edge.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True)).buffer


def stored_references(path: Path) -> dict[str, list[BlobKey]]:
    """Return for each function of a program what it refers to in the blob file, by content."""
    (found,) = package.stored_packages(pte.read(path))
    weights = found.read(package.WEIGHTS)
    return {
        name: [
            blobfile.key_of(weights, blobfile.blob_at(weights, value.offset, where=name))
            for _, value in mil.blob_references(function)
        ]
        for name, function in mil.parse_model(found.read(package.MODEL)).mlProgram.functions.items()
    }


@pytest.fixture(scope="module")
def ours(with_twins, bundle: Bundle) -> dict[str, list[BlobKey]]:
    return stored_references(with_twins.add(bundle, ["first", "second"]).path / "model.pte")


def test_functions_have_the_same_names_and_the_same_weights(ours, theirs) -> None:
    assert set(theirs) == {"forward", "first", "second"} == set(ours) - set(ADAPTERS)
    for name in ("forward", "first"):
        assert set(ours[name]) == set(theirs[name]), name


def test_theirs_gives_a_near_equal_adapter_the_weights_of_another_and_ours_its_own(ours, theirs) -> None:
    assert set(theirs["second"]) == set(theirs["first"])
    own = set(ours["second"]) - set(ours["first"])
    assert len(own) == 4  # A of q_proj and v_proj in two layers; B is the same in both
