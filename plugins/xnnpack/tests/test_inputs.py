"""Adapters as inputs: one program for all of them, each a file, at any strength and several at once."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from blocks_model import plan as plan_of
from blocks_model import streamed
from inputs_worker import SELECTIONS, TOKENS
from lora_core_xnnpack.backend import XnnpackBackend
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.marks import ADAPTER_MARK, is_mark, program_inputs
from lora_core_xnnpack.inputs.adapter_file import read_adapter
from lora_core_xnnpack.inputs.stamping import stamp_with_inputs
from lora_core_xnnpack.options import XnnpackOptions
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lowered_whole import assert_equal_together, whole_with_inputs
from workbench import ALL_LINEAR, POLICY_REGISTRY, Workbench

import lora_core
from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import place
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.bundle.bundle import Bundle
from lora_core.capability import Capability
from lora_core.errors import BundleError, UnsupportedError
from lora_core.events import ignore
from lora_core.hub import PluginHub
from lora_core.pipeline.recording import plain_options
from lora_core.runtime.selection import Selection
from lora_core.sharing.accounting import unaccounted_problems
from tests.data_file_damages import DAMAGES
from tests.numeric import apart, decoder_tolerance

OPTIONS = {"lora": "inputs", "max_context_len": 32, "max_seq_len": 16}
# One layer in float32, whose sums are taken in another order, of the spread of the logits.
TOLERANCE = decoder_tolerance(layers=1, hidden=64, inner=96, context=16, rank=4)


@attrs.frozen(kw_only=True)
class Exporter:
    """Exports the one-layer checkpoint with some of the adapters, on a plan with room for both together."""

    bench: Workbench
    root: Path
    adapters: dict[str, Adapter]

    def export(self, *names: str, **options: Any) -> Bundle:
        """Export the adapters `names`."""
        return lora_core.export(
            self.bench.checkpoint,
            adapters={name: self.adapters[name].source for name in names},
            backend="xnnpack",
            policy="fp32",
            out=self.root / "-".join(("bundle", *names, *options)),
            options={**OPTIONS, **options},
            max_rank=4,
            targets="all-linear",
            cache=self.root / "cache",
        )


@pytest.fixture(scope="module")
def exporter(one_layer: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    adapters = {
        "alpha": one_layer.adapter("alpha-in", seed=1, rank=2),
        "zulu": one_layer.adapter("zulu-in", seed=2, rank=2, targets=ALL_LINEAR),
    }
    return Exporter(bench=one_layer, root=tmp_path_factory.mktemp("inputs"), adapters=adapters)


@pytest.fixture(scope="module")
def bundle(exporter: Exporter) -> Bundle:
    return exporter.export("alpha", "zulu")


@pytest.fixture(scope="module")
def empty(exporter: Exporter, bundle: Bundle) -> Bundle:
    """The same without adapters, whose program was kept when `bundle` was made."""
    assert bundle.manifest.plans
    return exporter.export()


@pytest.fixture(scope="module")
def ran(bundle: Bundle, exporter: Exporter) -> dict[str, Any]:
    """What a process of its own told of the bundle."""
    command = [sys.executable, str(Path(__file__).parent / "inputs_worker.py"), bundle.path, exporter.root / "packed"]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def eager(exporter: Exporter) -> Callable[[str | None], np.ndarray]:
    """Logits of the last position from transformers, with adapters merged into the weights at their strengths."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(exporter.bench.checkpoint, dtype=torch.float32)

    def run(selection: str | None) -> np.ndarray:
        model = copy.deepcopy(reference)
        for name, strength in Selection.parse(selection).strengths.items():
            for update in exporter.adapters[name].updates:
                delta = update.scaling * strength * (update.tensors["b"].read() @ update.tensors["a"].read())
                model.get_submodule(update.module).weight.data += torch.from_numpy(delta)
        with torch.no_grad():
            found: np.ndarray = model(torch.tensor([TOKENS])).logits[0, -1].numpy()
        return found

    return run


def of(ran: dict[str, Any], selection: str | None, kind: str = "selections") -> np.ndarray:
    return np.array(ran[kind][SELECTIONS.index(selection)], np.float32)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_selection_agrees_with_the_eager_model(
    ran: dict[str, Any], eager: Callable[[str | None], np.ndarray], selection: str | None
) -> None:
    assert apart(of(ran, selection), eager(selection)) <= TOLERANCE


def test_adapters_and_strengths_tell_the_selections_apart(eager: Callable[[str | None], np.ndarray]) -> None:
    expected = [eager(selection) for selection in SELECTIONS if selection != "zulu@0"]
    distances = [apart(one, other) for at, one in enumerate(expected) for other in expected[:at]]
    assert min(distances) > 20 * TOLERANCE


def test_at_strength_zero_the_method_computes_the_base_itself(ran: dict[str, Any]) -> None:
    assert np.array_equal(of(ran, "zulu@0"), of(ran, None))


def test_a_strength_that_is_set_is_that_of_every_call(ran: dict[str, Any]) -> None:
    before, between, after = (np.array(each, np.float32) for each in ran["told"])
    assert np.array_equal(between, of(ran, "zulu@0.5"))
    assert np.array_equal(before, after)


def test_unloading_lets_go_of_files_and_at_last_of_the_methods(ran: dict[str, Any]) -> None:
    assert ran["unloaded"]["left"] == {"files": 0, "methods": ["forward", "lora_forward"]}
    assert ran["unloaded"]["at last"] == []
    assert np.array_equal(np.array(ran["unloaded"]["again"], np.float32), of(ran, "zulu"))


def test_packed_weights_in_a_file_change_nothing(ran: dict[str, Any]) -> None:
    assert not ran["packed cache"].startswith("off")
    for selection in SELECTIONS:
        assert np.array_equal(of(ran, selection, "packed"), of(ran, selection))


def stock(bundle: Path) -> np.ndarray:
    """Run the method that takes adapters as a runner would that knows nothing but the files."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers the operators
    from executorch.extension.pybindings import portable_lib

    (inputs,) = program_inputs(bundle / "model.pte").values()
    file = bundle / "adapters/zulu.ptd"
    data = file.read_bytes()
    blobs = {blob.key: blob for blob in stored_blobs(data, file)}
    tensors = [
        torch.from_numpy(np.frombuffer(data, "<f4", blob.size // 4, blob.offset).reshape(blob.layout.sizes).copy())
        for blob in (blobs[key] for key in inputs)
    ]
    module = portable_lib._load_for_executorch(str(bundle / "model.pte"), data_path=str(bundle / "foundation.ptd"))
    fed = (torch.tensor([TOKENS], dtype=torch.long), torch.tensor([0], dtype=torch.long))
    found: np.ndarray = module.run_method("lora_forward", (*fed, *tensors))[0].reshape(-1).numpy()
    return found


def test_a_runner_that_knows_nothing_but_the_files_computes_the_same(ran: dict[str, Any], bundle: Bundle) -> None:
    # All tokens in one call, whose sums are taken in another order.
    assert apart(stock(bundle.path), of(ran, "zulu")) <= TOLERANCE


def test_adapters_change_no_byte_of_program_and_foundation(bundle: Bundle, empty: Bundle) -> None:
    for name in ("model.pte", "foundation.ptd"):
        assert bundle.file(name).read_bytes() == empty.file(name).read_bytes()


def test_adding_writes_one_file_which_is_that_of_an_export(
    exporter: Exporter, bundle: Bundle, empty: Bundle, tmp_path: Path
) -> None:
    placed = place([exporter.adapters["zulu"]], empty.manifest.plans)
    linked = XnnpackBackend().link(
        empty, [attrs.evolve(each, adapter=named(each.adapter)) for each in placed], tmp_path, ignore
    )
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert written == [file.path for file in linked.files] == ["adapters/zulu.ptd"]
    assert (tmp_path / written[0]).read_bytes() == bundle.file(written[0]).read_bytes()


def named(adapter: Adapter) -> Adapter:
    return attrs.evolve(adapter, name=adapter.name.removesuffix("-in"))


def test_an_adapter_is_removed_with_its_file_alone(bundle: Bundle, empty: Bundle, tmp_path: Path) -> None:
    left = lora_core.remove(shutil.copytree(bundle.path, tmp_path / "bundle"), ["alpha", "zulu"])
    assert files_of(left.path) == files_of(empty.path)


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_file_is_the_one_that_executorch_writes(bundle: Bundle) -> None:
    """Held against ExecuTorch's own serializer: entries, layouts, segments, header."""
    from executorch.exir._serialize.data_serializer import DataEntry, DataPayload
    from executorch.exir.scalar_type import ScalarType
    from executorch.exir.tensor_layout import TensorLayout
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorConfig, FlatTensorSerializer

    path = bundle.file("adapters/zulu.ptd")
    data = path.read_bytes()
    buffers: dict[bytes, int] = {}
    entries = {}
    for blob in stored_blobs(data, path):
        layout = blob.layout and TensorLayout(ScalarType.FLOAT, list(blob.layout.sizes), list(blob.layout.dim_order))
        index = buffers.setdefault(data[blob.offset : blob.offset + blob.size], len(buffers))
        entries[blob.key] = DataEntry(buffer_index=index, alignment=1, tensor_layout=layout)
    serializer = FlatTensorSerializer(FlatTensorConfig(segment_alignment=128))
    written = serializer.serialize(DataPayload(buffers=list(buffers), named_data=entries))
    assert bytes(written) == data


def test_the_base_is_stored_once_and_every_byte_is_accounted_for(bundle: Bundle) -> None:
    sharing = XnnpackBackend().sharing
    blobs = list(sharing.blobs(bundle))
    foundation = [blob for blob in blobs if blob.file == "foundation.ptd"]
    assert foundation
    assert {blob.methods for blob in foundation} == {frozenset({"forward", "alpha", "zulu"})}
    assert {blob.methods for blob in blobs if blob.file == "adapters/zulu.ptd"} == {frozenset({"zulu"})}
    assert not list(unaccounted_problems(bundle, blobs, list(sharing.parts(bundle))))


def test_stored_values_are_what_was_linked(exporter: Exporter, bundle: Bundle) -> None:
    (placed,) = place([exporter.adapters["zulu"]], bundle.manifest.plans)
    stored = XnnpackBackend().stored_values(bundle, "zulu")
    for slot, parts in placed.values():
        for part, array in parts.items():
            assert np.array_equal(stored[slot.module][part], array)


def test_a_mapped_adapter_ends_before_its_file_does(bundle: Bundle) -> None:
    """XNNPACK's kernels read up to 64 bytes behind a tensor."""
    path = bundle.file("adapters/zulu.ptd")
    data = path.read_bytes()
    ends = [blob.offset + blob.size for blob in stored_blobs(data, path) if not is_mark(blob.key)]
    assert max(ends) + 64 <= len(data)


def test_constants_refuse_a_strength_and_name_the_option(bundle: Bundle) -> None:
    options = {key: value for key, value in bundle.manifest.options.items() if key != "lora"}
    constants = attrs.evolve(bundle, manifest=attrs.evolve(bundle.manifest, options=options))
    with XnnpackBackend().open(constants, None) as session:
        with pytest.raises(UnsupportedError, match="--lora inputs"):
            session.step("zulu@0.5", TOKENS, 0)
        with pytest.raises(UnsupportedError, match="--lora inputs"):
            session.strength("zulu", 0.5)


def test_a_program_of_another_base_is_not_linked_to(exporter: Exporter, empty: Bundle, tmp_path: Path) -> None:
    foreign = attrs.evolve(empty, manifest=attrs.evolve(empty.manifest, detail={"foundation_mark": "0" * 64}))
    with pytest.raises(BundleError, match="another foundation"):
        XnnpackBackend().link(foreign, place([exporter.adapters["zulu"]], empty.manifest.plans), tmp_path, ignore)


def test_a_file_of_another_base_is_not_read(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="made for another base"):
        read_adapter(bundle.file("adapters/zulu.ptd"), "0" * 64)


def _renamed_mark(data: bytes) -> bytes:
    return data.replace(ADAPTER_MARK.encode(), b"x" * len(ADAPTER_MARK))


def _renamed_part(data: bytes) -> bytes:
    return data.replace(b"q_proj.lora_a", b"q_proj.lora_c", 1)


@pytest.mark.parametrize("damage", [*DAMAGES, _renamed_mark, _renamed_part])
def test_a_damaged_file_is_refused(bundle: Bundle, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "zulu.ptd"
    mark = bundle.manifest.detail["foundation_mark"]
    shutil.copy(bundle.file("adapters/zulu.ptd"), path)
    assert read_adapter(path, mark)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError):
        read_adapter(path, mark)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layout": "split"}, "--layout split"),
        ({"adapter_data": "embedded"}, "--adapter-data embedded"),
    ],
)
def test_options_that_contradict_it_are_refused(two_layers: Workbench, options: dict[str, str], told: str) -> None:
    job = attrs.evolve(two_layers.job([]), options=XnnpackOptions(lora="inputs", max_context_len=32, **options))
    (problem,) = XnnpackBackend().check(job)
    assert told in problem.what


def test_other_kinds_than_lora_and_other_types_than_float32_are_refused(two_layers: Workbench) -> None:
    job = two_layers.job([two_layers.adapter("attention", seed=1)])
    (plan,) = job.plans
    slots = (attrs.evolve(plan.slots[0], kind="gain"), *plan.slots[1:])
    job = attrs.evolve(
        job,
        plans=(SlotPlan(slots=slots),),
        policy=attrs.evolve(job.policy, lora=PluginHub().backends["xnnpack"].adapter_dtypes["int8"]),
        options=XnnpackOptions(lora="inputs", max_context_len=32),
    )
    kind, dtype = XnnpackBackend().check(job)
    assert "DoRA" in kind.what
    assert "float32" in dtype.what


@pytest.mark.parametrize(("option", "value"), [("lora", "inputs"), ("kv_cache", "int8")])
def test_a_manifest_tells_the_option_only_where_it_is_used(option: str, value: str) -> None:
    """Bundles without it are what they were before there was a choice."""
    assert option not in plain_options(XnnpackOptions())
    assert plain_options(attrs.evolve(XnnpackOptions(), **{option: value}))[option] == value


def test_the_descriptor_says_which_option_selections_need() -> None:
    spec = PluginHub().backends["xnnpack"]
    assert {Capability.STRENGTH, Capability.BLEND} <= spec.capabilities
    assert spec.selection_options == {"lora": "inputs"}


def test_a_program_derived_from_a_few_layers_equals_a_full_lowering(tmp_path: Path) -> None:
    base = streamed([48] * 11, POLICY_REGISTRY["fp32"])  # numbers of one and two digits
    plans = (plan_of(base, lambda _, name: 2 * (name == "up")),)
    derived = stamp_with_inputs(LayeredBase.of(base), plans, ignore)
    assert_equal_together(derived, whole_with_inputs(base, plans, tmp_path))
