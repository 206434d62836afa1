"""Adapters as inputs: one method for all of them, each a file, at any strength and several at once."""

import copy
import shutil

import attrs
import numpy as np
import pytest
import torch
from lora_core_coreml import adapter_files
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.session_options import CoremlSessionOptions
from lora_core_coreml.storage import adapter_file, pte

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.bundle.bundle import Bundle
from lora_core.capability import Capability
from lora_core.errors import BundleError, UnsupportedError, UsageError
from lora_core.events import ignore
from lora_core.hub import PluginHub
from lora_core.pipeline.recording import plain_options
from lora_core.sharing.accounting import unaccounted_problems
from tests.data_file_damages import DAMAGES
from tests.numeric import FLOAT16, apart, tolerance

TOKENS = [5, 17, 3, 99, 42, 7, 8]
# Of the spread of the logits: weights alone are rounded to float16, seven linear layers in two layers, embedding, head.
ACCUMULATING = tolerance(2 * 7 + 2, unit=FLOAT16)
# Every operation is, some fifteen a layer.
STRICT = tolerance(2 * 15 + 2, unit=FLOAT16)
ROOMY = ["shout", "pirate", "whole"]
"""A plan of rank 12, in which two adapters of rank 4 have room together."""


@pytest.fixture(scope="module")
def inputs(exporter) -> Bundle:
    """The tiny base with `shout` and `pirate` as inputs, in a plan without room for both."""
    return exporter.export(["shout", "pirate"], lora="inputs")


@pytest.fixture(scope="module")
def roomy(exporter) -> Bundle:
    return exporter.export(["shout", "pirate"], lora="inputs", plan_of=ROOMY)


def eager(exporter, tiny_model, strengths: dict[str, float]) -> np.ndarray:
    """Logits of the last position from transformers, with adapters merged into the weights at their strengths."""
    model = copy.deepcopy(tiny_model.reference)
    for name, strength in strengths.items():
        for update in exporter.adapter(name).updates:
            delta = update.scaling * strength * (update.tensors["b"].read() @ update.tensors["a"].read())
            model.get_submodule(update.module).weight.data += torch.from_numpy(delta)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0, -1].numpy()


def evaluated(bundle: Bundle, selection: str | None, precision: str = "float32") -> np.ndarray:
    with CoremlBackend().open(bundle, CoremlSessionOptions(precision=precision)) as session:
        return session.step(selection, TOKENS, 0)


@pytest.mark.parametrize("name", [None, "shout", "pirate"])
@pytest.mark.parametrize(("precision", "limit"), [("float16", STRICT), ("float32", ACCUMULATING)])
def test_an_adapter_as_input_agrees_with_the_eager_model(exporter, tiny_model, inputs, name, precision, limit) -> None:
    expected = eager(exporter, tiny_model, {name: 1.0} if name else {})
    assert apart(evaluated(inputs, name, precision), expected) <= limit


def test_an_input_computes_what_a_constant_does(bundle: Bundle, inputs: Bundle) -> None:
    assert np.array_equal(evaluated(bundle, "shout"), evaluated(inputs, "shout"))


@pytest.mark.parametrize("strength", [0.5, -1.5, 0.0])
def test_a_strength_is_that_of_the_call(exporter, tiny_model, inputs: Bundle, strength: float) -> None:
    expected = eager(exporter, tiny_model, {"pirate": strength})
    assert apart(evaluated(inputs, f"pirate@{strength}"), expected) <= ACCUMULATING


def test_a_strength_that_is_set_is_that_of_every_call(inputs: Bundle) -> None:
    expected = evaluated(inputs, "pirate@0.5"), evaluated(inputs, "pirate")
    with CoremlBackend().open(inputs, CoremlSessionOptions(precision="float32")) as session:
        session.load("pirate")
        session.strength("pirate", 0.5)
        assert np.array_equal(session.step("pirate", TOKENS, 0), expected[0])
        session.strength("pirate", 1)
        session.reset()
        assert np.array_equal(session.step("pirate", TOKENS, 0), expected[1])


def test_a_blend_is_the_sum_of_its_adapters(exporter, tiny_model, roomy: Bundle) -> None:
    strengths = {"shout": 0.5, "pirate": -0.3}
    expected = eager(exporter, tiny_model, strengths)
    assert apart(evaluated(roomy, "shout:0.5+pirate:-0.3"), expected) <= ACCUMULATING
    assert apart(expected, eager(exporter, tiny_model, {})) > 20 * ACCUMULATING


def test_a_blend_without_room_says_how_much_it_needs(inputs: Bundle) -> None:
    with pytest.raises(UnsupportedError, match=r"needs rank 8.*--max-rank 8"):
        evaluated(inputs, "shout+pirate")


def test_constants_refuse_a_strength_and_name_the_option(bundle: Bundle) -> None:
    with pytest.raises(UnsupportedError, match="--lora inputs"):
        evaluated(bundle, "shout@0.5")
    with (
        CoremlBackend().open(bundle, CoremlSessionOptions(precision="float32")) as session,
        pytest.raises(UnsupportedError, match="--lora inputs"),
    ):
        session.strength("shout", 0.5)


def test_an_unknown_adapter_is_refused(inputs: Bundle) -> None:
    with pytest.raises(UsageError, match="'shut'"):
        evaluated(inputs, "shut@0.5")


def test_adapters_share_one_method_and_change_no_byte_of_the_program(exporter, inputs: Bundle) -> None:
    alone = exporter.export([], lora="inputs", plan_of=["shout", "pirate"])
    assert (alone.path / "model.pte").read_bytes() == (inputs.path / "model.pte").read_bytes()
    assert alone.manifest.foundation == inputs.manifest.foundation


def test_adding_writes_one_file_which_is_that_of_an_export(exporter, inputs: Bundle, tmp_path) -> None:
    empty = exporter.export([], lora="inputs", plan_of=["shout", "pirate"])
    linked = CoremlBackend().link(empty, exporter.placed(empty, ["pirate"]), tmp_path, ignore)
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert written == [file.path for file in linked.files] == ["adapters/pirate.ptd"]
    assert (tmp_path / written[0]).read_bytes() == (inputs.path / written[0]).read_bytes()


def test_removing_rewrites_nothing(inputs: Bundle, tmp_path) -> None:
    assert CoremlBackend().unlink(inputs, ["pirate"], tmp_path, ignore) is None


def test_a_program_of_another_base_is_not_linked_to(exporter, inputs: Bundle, tmp_path) -> None:
    foreign = attrs.evolve(inputs, manifest=attrs.evolve(inputs.manifest, foundation="0" * 64))
    with pytest.raises(BundleError, match="fingerprint"):
        CoremlBackend().link(foreign, exporter.placed(inputs, ["pirate"]), tmp_path, ignore)


def test_a_file_of_another_base_is_not_read(inputs: Bundle) -> None:
    foreign = attrs.evolve(inputs, manifest=attrs.evolve(inputs.manifest, foundation="0" * 64))
    with pytest.raises(BundleError, match="made for another base"):
        adapter_files.opened(foreign, "pirate")


def test_stored_values_are_linked_to_the_same_bytes(exporter, inputs: Bundle) -> None:
    (placed,) = exporter.placed(inputs, ["shout"])
    stored = CoremlBackend().stored_values(inputs, "shout")
    for slot, parts in placed.values():
        for part, array in parts.items():
            assert np.array_equal(stored[slot.module][part].astype(np.float16), array.astype(np.float16))


def test_executorch_reads_what_the_shared_method_takes(inputs: Bundle) -> None:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(inputs.path / "model.pte")
    base, called = program.metadata("forward"), program.metadata("lora_forward")
    slots = [part.shape for slot in inputs.manifest.plans[0].slots for part in slot.parts]
    assert called.num_inputs() == base.num_inputs() + len(slots)
    sizes = [tuple(called.input_tensor_meta(index).sizes()) for index in range(base.num_inputs(), called.num_inputs())]
    assert sorted(sizes) == sorted(slots)
    assert called.num_outputs() == base.num_outputs()


def test_the_file_is_the_one_that_executorch_writes(inputs: Bundle) -> None:
    """Held against ExecuTorch's own serializer: entries, layouts, segments, header."""
    from executorch.exir._serialize.data_serializer import DataEntry, DataPayload
    from executorch.exir.scalar_type import ScalarType
    from executorch.exir.tensor_layout import TensorLayout
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorConfig, FlatTensorSerializer

    path = inputs.path / "adapters" / "pirate.ptd"
    file = adapter_file.read_adapter(path)
    buffers: dict[bytes, int] = {file.foundation.encode(): 0}
    named = {adapter_file.MARK: DataEntry(buffer_index=0, alignment=1, tensor_layout=None)}
    for key, tensor in file.tensors.items():
        number = buffers.setdefault(file.read(key).tobytes(), len(buffers))
        layout = TensorLayout(scalar_type=ScalarType.HALF, sizes=list(tensor.shape), dim_order=[0, 1])
        named[key] = DataEntry(buffer_index=number, alignment=1, tensor_layout=layout)
    serializer = FlatTensorSerializer(FlatTensorConfig(segment_alignment=128))
    assert path.read_bytes() == bytes(serializer.serialize(DataPayload(buffers=list(buffers), named_data=named)))


def test_every_byte_is_told_and_the_base_is_read_by_all(inputs: Bundle) -> None:
    sharing = CoremlBackend().sharing
    blobs = list(sharing.blobs(inputs))
    assert not list(unaccounted_problems(inputs, blobs, sharing.parts(inputs)))
    base = [blob for blob in blobs if blob.file == "model.pte"]
    assert {blob.methods for blob in base} == {frozenset({"forward", "shout", "pirate"})}
    assert {blob.methods for blob in blobs if blob.file != "model.pte"} == {frozenset({"shout"}), frozenset({"pirate"})}


def test_partitions_are_handed_their_own_inputs(exporter) -> None:
    options = {"graph_breaks": True, "split_size": 32, "max_splits": 4}  # as test_variants lowers it
    bundle = exporter.export(["shout"], lora="inputs", **options)
    assert len(pte.read(bundle.path / "model.pte").program["named_data"]) == 3
    constants = exporter.export(["shout"], **options)
    assert np.array_equal(evaluated(bundle, "shout"), evaluated(constants, "shout"))


def test_unloading_lets_go_of_the_file_and_the_method(inputs: Bundle) -> None:
    with CoremlBackend().open(inputs, CoremlSessionOptions(precision="float32")) as session:
        before = session.step("shout@0.5", TOKENS, 0)
        session.load("pirate")
        session.unload("shout@0.5")
        session.unload("pirate")
        assert session._adapters._slots._read == {}
        assert session._program._functions == {}
        assert np.array_equal(session.step("shout@0.5", TOKENS, 0), before)


def test_a_program_without_slots_is_the_base_alone(exporter) -> None:
    assert not CoremlBackend().check(exporter.job([], lora="inputs"))


def test_other_kinds_than_lora_are_refused(exporter) -> None:
    job = exporter.job(["shout"], lora="inputs")
    (plan,) = job.plans
    slot = attrs.evolve(plan.slots[0], kind="gain")
    found = CoremlBackend().check(attrs.evolve(job, plans=(SlotPlan(slots=(slot, *plan.slots[1:])),)))
    assert "DoRA" in str(found)


def test_a_manifest_tells_the_option_only_where_it_is_used() -> None:
    """Bundles with adapters as constants are what they were before there was a choice."""
    assert "lora" not in plain_options(CoremlOptions())
    assert plain_options(CoremlOptions(lora="inputs"))["lora"] == "inputs"


def test_the_descriptor_says_which_option_selections_need() -> None:
    spec = PluginHub().backends["coreml"]
    assert {Capability.STRENGTH, Capability.BLEND} <= spec.capabilities
    assert spec.selection_options == {"lora": "inputs"}


def _renamed_mark(data: bytes) -> bytes:
    return data.replace(adapter_file.MARK.encode(), b"x" * len(adapter_file.MARK))


@pytest.mark.parametrize("damage", [*DAMAGES, _renamed_mark])
def test_a_damaged_file_is_refused(inputs: Bundle, tmp_path, damage) -> None:
    path = tmp_path / "pirate.ptd"
    shutil.copy(inputs.path / "adapters" / "pirate.ptd", path)
    assert adapter_file.read_adapter(path).foundation == inputs.manifest.foundation
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError):
        adapter_file.read_adapter(path)
