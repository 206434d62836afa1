"""Adding an adapter writes sections only, the same bytes as a full export; the foundation never changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_core_qnn_sim.artifacts.container import read_container
from lora_core_qnn_sim.artifacts.foundation import pack_nibbles, unpack_nibbles
from lora_core_qnn_sim.backend import QnnSimBackend

from lora_core.errors import UnsupportedError
from lora_core.events import ignore
from lora_core.sharing.report import SharingReport, owners_of
from plugins.qnn_sim.tests import tiny


@pytest.mark.parametrize("policy", ["w8a16", "w4a16", "w8a8"])
def test_the_foundation_has_the_same_bytes_with_no_one_and_many_adapters_in_any_order(
    tmp_path: Path, model: Any, five: Any, policy: str
) -> None:
    sets = [(), five[:1], five[:3], tuple(reversed(five[:3]))]
    stored = {
        tiny.export(tiny.make_job(model, adapters, policy=policy), tmp_path / str(i))
        .file("foundation.bin")
        .read_bytes()
        for i, adapters in enumerate(sets)
    }
    assert len(stored) == 1


@pytest.mark.parametrize("mode", ["adapter_only", "all"])
def test_link_writes_exactly_the_bytes_of_a_full_export(tmp_path: Path, model: Any, five: Any, mode: str) -> None:
    full = tiny.export(tiny.make_job(model, five[:3], quant_updatable=mode), tmp_path / "full")
    part = tiny.export(tiny.make_job(model, five[:2], quant_updatable=mode), tmp_path / "part")
    (tmp_path / "added").mkdir()
    made = QnnSimBackend().link(part, tiny.placed(part, five[2]), tmp_path / "added", ignore)
    assert [file.path for file in made.files] == ["sections/llm_a3.bin"]
    assert sorted(path.name for path in (tmp_path / "added").rglob("*") if path.is_file()) == ["llm_a3.bin"]
    assert (tmp_path / "added/sections/llm_a3.bin").read_bytes() == tiny.sections(full)["llm_a3.bin"]
    assert part.file("context.bin").read_bytes() == full.file("context.bin").read_bytes()


def test_an_adapter_linked_in_mode_none_uses_the_encodings_fixed_at_export(
    tmp_path: Path, model: Any, five: Any
) -> None:
    bundle = tiny.export(tiny.make_job(model, five[:2], quant_updatable="none"), tmp_path / "out")
    loud = tiny.adapter("loud", model.summary, seed=9, size=2.0)
    (tmp_path / "added").mkdir()
    heard: list[Any] = []
    made = QnnSimBackend().link(bundle, tiny.placed(bundle, loud), tmp_path / "added", heard.append)
    assert [file.path for file in made.files] == ["sections/llm_loud_weights.bin"]
    assert any("saturate the shared encodings" in getattr(event, "message", "") for event in heard)


def test_linking_into_a_hot_switch_context_is_refused_saying_what_to_do(tmp_path: Path, model: Any, five: Any) -> None:
    bundle = tiny.export(tiny.make_job(model, five[:2], hot_switch=True), tmp_path / "out")
    with pytest.raises(UnsupportedError, match="Export again with every adapter"):
        QnnSimBackend().link(bundle, tiny.placed(bundle, five[2]), tmp_path, ignore)


def test_two_exports_give_the_same_bytes(tmp_path: Path, model: Any, five: Any) -> None:
    one = tiny.export(tiny.make_job(model, five[:2]), tmp_path / "one")
    two = tiny.export(tiny.make_job(model, five[:2]), tmp_path / "two")
    files = sorted(str(path.relative_to(one.path)) for path in one.path.rglob("*.bin"))
    assert all(one.file(name).read_bytes() == two.file(name).read_bytes() for name in files)


def test_blobs_are_the_stored_bytes_and_the_base_is_shared_by_every_method(grouped: Any) -> None:
    blobs = list(QnnSimBackend().sharing.blobs(grouped))
    for blob in blobs:
        data = grouped.file(blob.file).read_bytes()[blob.offset : blob.offset + blob.size]
        assert len(data) == blob.size
    everyone = {method.name for method in grouped.manifest.methods}
    assert {blob.methods for blob in blobs if blob.file == "foundation.bin"} == {frozenset(everyone)}
    shared = [blob for blob in blobs if blob.file.endswith("llm_a1_encodings.bin")]
    assert {blob.methods for blob in shared} == {frozenset({"a1", "a2"})}
    assert QnnSimBackend().sharing.fingerprint(grouped) == grouped.manifest.foundation


@pytest.mark.parametrize("options", [{"quant_updatable": "all"}, {"group": ("g=a1,a2",)}, {"hot_switch": True}])
def test_no_bytes_of_the_base_are_stored_twice(tmp_path: Path, model: Any, five: Any, options: dict[str, Any]) -> None:
    bundle = tiny.export(tiny.make_job(model, five[:3], **options), tmp_path / "out")
    blobs = list(QnnSimBackend().sharing.blobs(bundle))
    stored = sum(blob.size for blob in blobs)
    assert stored == sum(
        read_container(path, kind).payload
        for pattern, kind in (("foundation.bin", "foundation"), ("context.bin", "context"), ("sections/*", "section"))
        for path in bundle.path.glob(pattern)
    )
    report = SharingReport.from_blobs(blobs, owners_of(bundle.manifest.methods))
    assert report.duplicates_of("forward") == ()


def test_encodings_that_others_need_outlive_the_leader_of_their_group(grouped: Any) -> None:
    owners = {artifact.path.rpartition("/")[2]: artifact.adapter for artifact in grouped.manifest.artifacts}
    assert owners["llm_a1_encodings.bin"] is None
    assert owners["llm_a1_weights.bin"] == "a1"
    assert owners["llm_a5.bin"] == "a5"


def test_section_overhead_is_small_and_does_not_grow_with_layers(tmp_path: Path, five: Any, model: Any) -> None:
    def overhead(layers: int) -> int:
        wide = tiny.open_model(tiny.write_checkpoint(tmp_path / f"m{layers}", num_hidden_layers=layers))
        adapter = tiny.adapter("one", wide.summary, seed=1, targets=("q_proj", "v_proj"))
        bundle = tiny.export(tiny.make_job(wide, [adapter]), tmp_path / f"out{layers}")
        path = bundle.path / "sections" / "llm_one.bin"
        tensors = sum(b.size for b in QnnSimBackend().sharing.blobs(bundle) if b.file.endswith("llm_one.bin"))
        return path.stat().st_size - tensors

    assert overhead(12) - overhead(2) < 300


@pytest.mark.parametrize("shape", [(3, 5), (2, 8), (1, 1)])
def test_four_bit_weights_come_back_from_their_packing(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(-7, 8, shape).astype(np.int8)
    assert np.array_equal(unpack_nibbles(pack_nibbles(values), shape), values)
