"""Encodings: the grid, AIMET's files, and encodings that the user supplies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_core_qnn_sim.artifacts.context_binary import read_context
from lora_core_qnn_sim.artifacts.foundation import read_foundation
from lora_core_qnn_sim.artifacts.section import read_section
from lora_core_qnn_sim.calibrate.calibrate import quantized_base, quantized_rows
from lora_core_qnn_sim.encodings.aimet import aimet_document, read_aimet
from lora_core_qnn_sim.encodings.grid import asymmetric, covering, quantize_channels, symmetric
from lora_core_qnn_sim.errors import EncodingsFileError
from lora_core_qnn_sim.graph.rotation import RotatedBase, rotate
from lora_core_qnn_sim.runtime.weights import BaseWeights

from lora_core.preparation.prompts import calibration_prompts
from plugins.qnn_sim.tests import tiny

Q = "layers.0.self_attn.q_proj"


def old_entry(bits: int, *, symmetric: bool, scale: float, offset: int) -> dict[str, Any]:
    """Return one channel's encoding as version 0.6.1 spells it."""
    ends = {"min": offset * scale, "max": (offset + (1 << bits) - 1) * scale}
    return {"bitwidth": bits, "dtype": "int", "is_symmetric": str(symmetric), "scale": scale, "offset": offset} | ends


def new_entry(scale: float, offset: int) -> dict[str, Any]:
    """Return a tensor's encoding as version 1.0.0 spells it, called `a`."""
    numbers = {"bw": 8, "is_sym": True, "scale": [scale], "offset": [offset]}
    return {"name": "a", "enc_type": "PER_TENSOR", "dtype": "INT"} | numbers


OLD = {
    "version": "0.6.1",
    "activation_encodings": {"act": [old_entry(16, symmetric=False, scale=1e-4, offset=-30000)]},
    "param_encodings": {"w": [old_entry(8, symmetric=True, scale=scale, offset=-128) for scale in (0.01, 0.02)]},
}


@settings(deadline=None)  # a busy machine is no fault
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from([8, 16]))
def test_a_grid_has_an_exact_zero_and_covers_its_range(one: float, other: float, bits: int) -> None:
    low, high = min(one, other), max(one, other)
    grid = asymmetric(low, high, bits)
    assert -(1 << bits) < grid.offset <= 0
    assert grid.dequantize(grid.quantize(np.zeros(1)))[0] == 0.0
    inside = np.array([min(low, 0.0), max(high, 0.0)])
    assert np.abs(grid.dequantize(grid.quantize(inside)) - inside).max() <= grid.scale * 1.01


def test_a_symmetric_grid_is_signed() -> None:
    grid = symmetric(1.27, 8)
    assert (grid.offset, grid.low, grid.high) == (-128, -128, 127)
    assert grid.quantize(np.array([1.27, -5.0])).tolist() == [127.0, -128.0]


def test_a_covering_grid_holds_every_members_range() -> None:
    grids = [asymmetric(-1, 2, 16), asymmetric(-3, 1, 16)]
    shared = covering(grids)
    assert shared.minimum <= -3 + shared.scale
    assert shared.maximum >= 2 - shared.scale
    assert covering([symmetric(1, 8), symmetric(2, 8)]) == symmetric(2, 8)


def test_four_bit_scales_lose_less_than_plain_ones() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    found = quantize_channels(weight, 4)
    plain = np.abs(weight).max(axis=1) / 7
    rounded = np.clip(np.rint(weight / plain[:, None]), -7, 7) * plain[:, None]
    assert np.square(found.dequantized() - weight).sum() < np.square(rounded - weight).sum()


@pytest.mark.parametrize(("policy", "others"), [("w4a16", True), ("w8a16", False)])
def test_scales_of_four_bits_can_follow_from_inputs(tmp_path: Path, model: Any, policy: str, others: bool) -> None:
    found = {
        search: read_foundation(
            tiny.export(tiny.make_job(model, policy=policy, scale_search=search), tmp_path / search).file(
                "foundation.bin"
            )
        ).base.linears
        for search in ("plain", "importance")
    }
    name = f"{Q}.weight"
    plain, importance = (found[search][name] for search in ("plain", "importance"))
    assert plain.bits == importance.bits
    assert np.array_equal(plain.scales, importance.scales) is not others
    assert np.allclose(plain.scales, importance.scales, rtol=1.0)  # another part of the largest weight


def test_both_versions_of_aimets_format_are_read(tmp_path: Path) -> None:
    (tmp_path / "old").write_text(json.dumps(OLD))
    entries = read_aimet(tmp_path / "old")
    assert entries["act"].per_tensor == attrs.evolve(asymmetric(-1, 1, 16), scale=1e-4, offset=-30000)
    assert entries["w"].scales == (0.01, 0.02)
    new = aimet_document({"act": entries["act"].per_tensor}, {}, {})
    (tmp_path / "new").write_text(json.dumps(new))
    assert read_aimet(tmp_path / "new")["act"] == entries["act"]


def test_per_channel_weights_are_written_as_the_format_says() -> None:
    weight = quantize_channels(np.array([[1.27, -1.0], [2.54, 0.0]], np.float32), 8)
    (entry,) = aimet_document({}, {}, {"w": weight})["param_encodings"]
    assert entry["enc_type"] == "PER_CHANNEL"
    assert entry["offset"] == [-128, -128]
    assert entry["scale"] == pytest.approx([0.01, 0.02])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "9"}, "version '9' are not read"),
        ({"activation_encodings": [{"name": "a"}]}, "'a' is wrong"),
        ({"activation_encodings": [3]}, "'?' is wrong"),
        ({"activation_encodings": {"a": 1}}, "'?' is wrong"),
        ({"param_encodings": [{"name": "a", "enc_type": "LPBQ"}]}, "LPBQ is not supported"),
        ({"param_encodings": [new_entry(0.0, 0)]}, "not positive"),
        ({"param_encodings": [new_entry(1.0, 5)]}, "do not fit 8 bits"),
    ],
)
def test_wrong_encodings_files_are_refused_saying_why(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "wrong").write_text(json.dumps({"version": "1.0.0"} | change))
    with pytest.raises(EncodingsFileError) as caught:
        read_aimet(tmp_path / "wrong")
    assert said in str(caught.value)


def _export_with(tmp_path: Path, model: Any, adapter: Any, name: str, document: dict[str, Any]) -> Any:
    (tmp_path / "given").write_text(json.dumps(document))
    return tiny.export(tiny.make_job(model, [adapter], encodings=(f"{name}={tmp_path / 'given'}",)), tmp_path / "out")


def test_supplied_encodings_replace_the_calibrated_ones(tmp_path: Path, model: Any, five: Any) -> None:
    given_grid = asymmetric(-7, 9, 16)
    document = aimet_document({f"{Q}.lora_a.output": given_grid}, {}, {})
    bundle = _export_with(tmp_path, model, five[0], "a1", document)
    stored = read_section(bundle.path / "sections" / "llm_a1.bin").encodings[f"{Q}.lora_a.output"]
    assert stored.tolist() == [np.float32(given_grid.scale), given_grid.offset]


def test_supplied_base_encodings_are_frozen_into_the_foundation(tmp_path: Path, model: Any, five: Any) -> None:
    given_grid = asymmetric(-70, 90, 16)
    bundle = _export_with(tmp_path, model, five[0], "base", aimet_document({f"{Q}.output": given_grid}, {}, {}))
    assert read_foundation(bundle.file("foundation.bin")).encodings[f"{Q}.output"] == given_grid


def test_supplied_encodings_that_do_not_fit_are_refused_together(tmp_path: Path, model: Any, five: Any) -> None:
    sound, narrow = asymmetric(-1, 1, 16), asymmetric(-1, 1, 8)
    document = aimet_document({"nowhere": sound, "norm.output": sound, f"{Q}.lora_a.output": narrow}, {}, {})
    with pytest.raises(EncodingsFileError) as caught:
        _export_with(tmp_path, model, five[0], "a1", document)
    said = str(caught.value)
    assert "no tensor nowhere" in said
    assert "has 8 bits, the graph 16" in said
    assert "which mode 'adapter_only' keeps fixed" in said


def test_written_encodings_read_back_give_the_same_sections(tmp_path: Path, model: Any, five: Any) -> None:
    first = tiny.export(tiny.make_job(model, five[:1], emit_qairt=tmp_path / "hand"), tmp_path / "first")
    words = (f"a1={tmp_path / 'hand/llm_a1.encodings'}", f"base={tmp_path / 'hand/llm.encodings'}")
    with_branch = json.loads((tmp_path / "hand/llm.encodings").read_text())
    bare = read_foundation(first.file("foundation.bin")).encodings
    kept = [entry for entry in with_branch["activation_encodings"] if entry["name"] in bare]
    params = [entry for entry in with_branch["param_encodings"] if ".lora_" not in entry["name"]]
    (tmp_path / "hand/llm.encodings").write_text(
        json.dumps(with_branch | {"activation_encodings": kept, "param_encodings": params})
    )
    second = tiny.export(tiny.make_job(model, five[:1], encodings=words), tmp_path / "second")
    assert tiny.sections(first) == tiny.sections(second)
    assert read_context(first.file("context.bin")).foundation == read_context(second.file("context.bin")).foundation


def test_prompts_come_from_text_ids_or_a_built_in_set(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[[1, 2, 3], [4]]")
    assert [p.tolist() for p in calibration_prompts(str(tmp_path / "ids.json"), None, 10, 2)] == [[1, 2], [4]]
    assert len(calibration_prompts(None, None, 10, 64)) == 8
    for text, said in (("[[11]]", "below 10"), ("[]", "no prompts"), ("{", "not JSON that can be read")):
        (tmp_path / "ids.json").write_text(text)
        with pytest.raises(Exception, match=said):
            calibration_prompts(str(tmp_path / "ids.json"), None, 10, 2)


@pytest.mark.parametrize("width", [1, 6, 32, 48, 576])
def test_rotation_is_orthogonal_and_spreads_a_single_channel(width: int) -> None:
    matrix = rotate(np.eye(width))
    assert np.abs(matrix @ matrix.T - np.eye(width)).max() < 1e-12
    assert np.abs(matrix).max() <= np.sqrt(2.0 / width) + 1e-12


@pytest.mark.parametrize("width", [6, 64, 576])
def test_rows_of_an_embedding_are_rotated_and_dequantized_as_in_all_of_it(width: int) -> None:
    name, numbers = "embed_tokens.weight", np.array([7, 0, 7, 299])
    table = np.random.default_rng(1).standard_normal((300, width)).astype(np.float32)
    rotated = RotatedBase(weights={name: table}, gains={})
    assert np.array_equal(rotated.rows(name, numbers), rotated[name][numbers])
    base = BaseWeights(linears={name: quantize_channels(table, 8)}, vectors={}, cos=table, sin=table)
    assert np.array_equal(quantized_rows(base)(name, numbers), quantized_base(base)(name)[numbers])
