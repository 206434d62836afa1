"""The foundation is written without holding the base, and equals that of a base that is held."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from lora_core_xnnpack.cache.forms import Form, forms, named_tensors, stored
from lora_core_xnnpack.cache.origins import BaseTensor, DependsOnWeightsError
from lora_core_xnnpack.files.data_file import DataBlob, serialize
from lora_core_xnnpack.files.data_writer import DataWriter, PlannedBlob
from lora_core_xnnpack.files.marks import FOUNDATION_MARK, mark_of, marked
from lora_core_xnnpack.lowering.base import load_base, outlined
from lora_core_xnnpack.split.weightless import WeightlessSet
from lora_core_xnnpack.stamping.elements import TooFewLayersError
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.streaming import base as streaming
from lora_core_xnnpack.streaming.base import StreamedBase
from lora_core_xnnpack.streaming.foundation import fill_foundation, write_foundation
from lora_core_xnnpack.streaming.stand_in import stand_in
from lora_core_xnnpack.streaming.weightless import Lowering, Missing, weightless
from safetensors.numpy import load_file, save_file
from workbench import Workbench

from lora_core.backend import ExportJob
from lora_core.events import Emit, Event, Noted, StageAdvanced, ignore
from lora_core.models.base import BaseModel
from lora_core.models.hf import HfModelSource

POLICIES = [
    ("fp32", None, {}),
    ("fp32", "8,0", {}),
    ("fp16", None, {}),
    ("c8w", None, {}),
    ("8da4w", "4,32", {"scale_search": "affine"}),
    ("8da4w", "8,32", {"scale_search": "hqq"}),
    ("8da4w", None, {}),
    ("8da4w", None, {"rounding": "compensated"}),
    ("8da4w", None, {"rounding": "importance"}),
    ("8da8w", None, {}),
]


def job_of(bench: Workbench, policy: str, embedding: str | None, options: Mapping[str, str]) -> ExportJob:
    job = bench.job([], policy=policy, embedding=embedding)
    return attrs.evolve(job, options=attrs.evolve(job.options, **options))


def streamed(job: ExportJob) -> StreamedBase:
    base = StreamedBase.of(job)
    assert base is not None
    return base


def held(job: ExportJob) -> dict[str, Any]:
    return dict(named_tensors(load_base(job, ignore).module))


def kept(path: str) -> bool:
    return "cache" not in path and "mask" not in path


def everything(base: StreamedBase, job: ExportJob) -> list[tuple[Form, int]]:
    """Return every form that the base's tensors can be stored in, but for caches and masks, with its size."""
    outline = outlined(job)
    assert outline is not None
    module = stand_in(base, outline).module
    tensors = dict(named_tensors(module))
    return [(form, len(stored(tensors[form.path], form))) for form in forms(module) if kept(form.path)]


@pytest.mark.parametrize(("policy", "embedding", "options"), POLICIES)
def test_a_streamed_foundation_is_that_of_a_base_that_is_held(
    two_layers: Workbench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    embedding: str | None,
    options: Mapping[str, str],
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 64 * 5 * 4)  # five rows, which divides no layer
    job = job_of(two_layers, policy, embedding, options)
    base = streamed(job)
    planned = [
        BaseTensor(form=form, name="" if index % 3 else str(index), prefix="", size=size, layout=None)
        for index, (form, size) in enumerate(everything(base, job))
    ]
    with job.options.how_to_round.layers(job.model, base.assignment, tmp_path, ignore) as layers:
        blobs = write_foundation(planned, attrs.evolve(base, rounded=layers), tmp_path / "data", ignore)
    tensors = held(job)
    expected: dict[str, DataBlob] = {}
    for tensor in planned:
        plain = DataBlob.under_content_key(stored(tensors[tensor.form.path], tensor.form))
        expected.setdefault(tensor.name or plain.key, attrs.evolve(plain, key=tensor.name or plain.key))
    written = (tmp_path / "data").read_bytes()
    mark = mark_of({key: blob.digest for key, blob in expected.items()})
    whole = [*expected.values(), marked(FOUNDATION_MARK, mark)]
    assert written == b"".join(bytes(part) for part in serialize(whole))
    assert {blob.key: written[blob.offset :][: blob.size] for blob in blobs} == {
        key: bytes(blob.data) for key, blob in expected.items()
    }


def test_a_tied_head_has_the_integers_and_scales_of_its_embedding_and_so_is_stored_once(two_layers: Workbench) -> None:
    tensors = held(job_of(two_layers, "8da4w", None, {}))
    for part, name in (("qdata", "weight"), ("scale", "scales")):
        head = stored(tensors["output.weight"], Form(path="output.weight", part=part, transform="raw"))
        table = Form(path=f"tok_embeddings.{name}", part="", transform="raw")
        assert head == stored(tensors[table.path], table)


def test_norms_that_are_equal_by_chance_are_told_of_and_nothing_is_written(tmp_path: Path) -> None:
    bench = Workbench.make(tmp_path / "model", layers=1)
    checkpoint = bench.checkpoint / "model.safetensors"
    tensors = load_file(checkpoint)
    tensors["model.layers.0.input_layernorm.weight"] = tensors["model.norm.weight"]
    save_file(tensors, checkpoint)
    job = attrs.evolve(bench.job([]), model=HfModelSource().open(str(bench.checkpoint)))
    names = ("norm.weight", "layers.0.ffn_norm.weight", "layers.0.attention_norm.weight")
    planned = [
        BaseTensor(form=Form(path=name, part="", transform="raw"), name=name, prefix="", size=256, layout=None)
        for name in names
    ]
    events: list[Event] = []
    assert fill_foundation(planned, streamed(job), tmp_path / "data", events.append) is None
    assert not (tmp_path / "data").exists()
    assert [event.message for event in events if isinstance(event, Noted)] == [
        "The base is held whole, because weights of it are equal by chance: "
        "norm.weight and layers.0.attention_norm.weight"
    ]


@attrs.frozen(kw_only=True)
class Counter:
    """How many float32 values were alive at once, of all that was read."""

    alive: dict[int, int] = attrs.field(factory=dict)
    most: list[int] = attrs.field(factory=lambda: [0])

    def count(self, array: Any) -> Any:
        self.alive[id(array)] = array.size
        weakref.finalize(array, self.alive.pop, id(array))
        self.most[0] = max(self.most[0], sum(self.alive.values()))
        return array


@attrs.frozen(kw_only=True)
class Counted:
    """A stored tensor whose reads are counted; it can only be read by rows."""

    tensor: Any
    counter: Counter

    @property
    def name(self) -> str:
        return str(self.tensor.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def read(self) -> Any:
        raise AssertionError(f"{self.name} was read whole")

    def read_rows(self, start: int, stop: int) -> Any:
        return self.counter.count(np.array(self.tensor.read_rows(start, stop)))


def counted(base: StreamedBase, counter: Counter) -> StreamedBase:
    sources: Mapping[str, Any] = {
        path: Counted(tensor=source, counter=counter) for path, source in base.outline.sources.items()
    }
    return attrs.evolve(base, outline=attrs.evolve(base.outline, sources=sources))


@pytest.mark.parametrize("policy", ["fp32", "8da4w"])
def test_of_the_base_only_some_rows_are_in_memory(
    two_layers: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 4096)
    job = job_of(two_layers, policy, None, {})
    base, counter = streamed(job), Counter()
    planned = [
        BaseTensor(form=form, name="", prefix="", size=size, layout=None) for form, size in everything(base, job)
    ]
    gc.disable()  # what is let go must be gone without a walk of the collector
    try:
        write_foundation(planned, counted(base, counter), tmp_path / "data", ignore)
    finally:
        gc.enable()
    # The next block is read before the last one is forgotten.
    assert 0 < counter.most[0] <= 2 * 4096 // 4


def test_no_two_stand_ins_are_alike_and_their_rows_but_a_few_are_zeros(two_layers: Workbench) -> None:
    job = job_of(two_layers, "fp32", None, {})
    outline = outlined(job)
    assert outline is not None
    module = stand_in(streamed(job), outline).module
    weights = {parameter.data_ptr(): parameter.numpy() for parameter in module.parameters()}
    assert len({weight.tobytes() for weight in weights.values()}) == len(weights) > 10
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    assert all(weight[:16].all() and not weight[16:].any() for weight in matrices)
    assert all(weight.all() for weight in weights.values() if weight.ndim == 1)


def test_writing_tells_how_many_bytes_are_done(two_layers: Workbench, tmp_path: Path) -> None:
    job = job_of(two_layers, "fp32", None, {})
    base, events = streamed(job), list[Event]()
    planned = [
        BaseTensor(form=form, name="", prefix="", size=size, layout=None) for form, size in everything(base, job)
    ]
    write_foundation(planned, base, tmp_path / "data", events.append)
    told = [event for event in events if isinstance(event, StageAdvanced)]
    assert {event.unit for event in told} == {"bytes"}
    assert [event.done for event in told] == sorted({event.done for event in told})
    assert told[-1].done == told[-1].total > 250_000


@pytest.mark.parametrize("repeated", [(), (3,), (0, 4), (1, 2, 3, 4)], ids=str)
def test_a_data_file_written_in_any_order_is_that_of_the_serializer(repeated: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    sizes = [300, 128, 300, 300, 300, 1, 70_000]
    datas = [generator.bytes(size) for size in sizes]
    for index in repeated:
        datas[index] = datas[2] if sizes[index] == 300 else datas[index]
    blobs = [PlannedBlob(segment=index, name=f"n{index}" * (index % 2), prefix="", layout=None) for index in range(7)]
    blobs.append(PlannedBlob(segment=2, name="again", prefix="", layout=None))
    file = io.BytesIO()
    writer = DataWriter(file, blobs, sizes)
    for index in generator.permutation(7):
        writer.write(int(index), datas[index][:100])
        writer.write(int(index), datas[index][100:])
    stored_blobs = writer.finish()
    plain = [DataBlob.under_content_key(datas[blob.segment]) for blob in blobs]
    keyed = [attrs.evolve(each, key=blob.name or each.key) for blob, each in zip(blobs, plain, strict=True)]
    distinct = list({each.key: each for each in keyed}.values())
    assert file.getvalue() == b"".join(bytes(part) for part in serialize(distinct))
    for blob, data in zip(stored_blobs, keyed, strict=True):
        assert (blob.key, file.getvalue()[blob.offset :][: blob.size]) == (data.key, data.data)


def test_a_segment_that_is_not_whole_is_refused() -> None:
    writer = DataWriter(io.BytesIO(), [PlannedBlob(segment=0, name="", prefix="", layout=None)], [8])
    writer.write(0, b"1234")
    with pytest.raises(ValueError, match="1 segments are not whole: 4 of 8 bytes"):
        writer.finish()


def test_programs_that_depend_on_weights_are_told_of(two_layers: Workbench, tmp_path: Path) -> None:
    job = job_of(two_layers, "fp32", None, {})
    events: list[Event] = []

    def lower(model: BaseModel, work: Path, missing: Missing[WeightlessSet]) -> WeightlessSet:
        (work / "foundation.ptd").write_bytes(b"stand-ins")
        raise DependsOnWeightsError("x is no stored form of a weight")

    def stamp(layers: LayeredBase, missing: Missing[WeightlessSet], emit: Emit) -> WeightlessSet:
        raise TooFewLayersError

    lowering = Lowering(stamp=stamp, whole=lower)
    assert weightless(job, streamed(job), WeightlessSet, lowering, tmp_path, events.append) is None
    assert [event.message for event in events if isinstance(event, Noted)] == [
        "The base is held whole, because its lowered programs depend on its weights: x is no stored form of a weight"
    ]
    assert list(tmp_path.iterdir()) == []
