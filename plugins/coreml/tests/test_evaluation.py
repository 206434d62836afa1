"""Stored functions evaluated: every method agrees with the eager model, and damage shows."""

import copy
import json
import shutil
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.runtime.evaluation.program import EvaluatedProgram
from lora_core_coreml.session_options import CoremlSessionOptions
from lora_core_coreml.storage import blobfile, mil, package, pte

from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError, LoraCoreError, UsageError
from tests.numeric import FLOAT16, apart, tolerance

TOKENS = [5, 17, 3, 99, 42, 7, 8]
# Of the spread of the logits. Some fifteen operations a layer are rounded to float16 in two layers, and the head.
STRICT = tolerance(2 * 15 + 2, unit=FLOAT16)
# Only weights are rounded to float16: seven linear layers in two layers, the embedding and the head.
ACCUMULATING = tolerance(2 * 7 + 2, unit=FLOAT16)


def eager(exporter, tiny_model, name: str | None) -> np.ndarray:
    """Logits of every position from transformers, with the adapter merged into the weights."""
    model = copy.deepcopy(tiny_model.reference)
    for update in exporter.adapter(name).updates if name else ():
        weight = model.get_submodule(update.module).weight
        weight.data += torch.from_numpy(update.scaling * (update.tensors["b"].read() @ update.tensors["a"].read()))
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def test_a_package_is_not_unpacked_where_its_key_leads(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = pte.read(bundle.file("model.pte"))
    segments = [stored.read_segment(index) for index in range(len(stored.program["segments"]))]
    program, outside = copy.deepcopy(stored.program), tmp_path / "outside"
    keys = {entry["key"]: str(outside / str(index)) for index, entry in enumerate(program["named_data"])}
    for entry in program["named_data"]:
        entry["key"] = keys[entry["key"]]
    for old, new in keys.items():
        segments = [each.replace(old.encode(), new.encode()) if len(each) < 1000 else each for each in segments]
    pte.write(tmp_path / "model.pte", program, [pte.Segment(size=len(each), chunks=[each]) for each in segments])
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    evaluated = EvaluatedProgram(tmp_path / "model.pte")
    evaluated.load("forward")
    assert list((tmp_path / "scratch").rglob("*.mlmodel")), "the package was unpacked"
    evaluated.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pte", "scratch"]


@pytest.mark.parametrize("name", [None, "shout", "pirate"])
@pytest.mark.parametrize(
    ("precision", "limit"), [("float16", STRICT), ("float32", ACCUMULATING)], ids=["strict", "accumulating"]
)
def test_a_method_agrees_with_the_eager_model(exporter, tiny_model, bundle: Bundle, name, precision, limit) -> None:
    expected = eager(exporter, tiny_model, name)
    with CoremlBackend().open(bundle, CoremlSessionOptions(precision=precision)) as session:
        together = session.step(name, TOKENS, 0)
        session.reset()
        one_by_one = [session.step(name, [token], position) for position, token in enumerate(TOKENS)]
    assert apart(together, expected[-1]) <= limit
    assert apart(np.stack(one_by_one), expected) <= limit


def test_adapters_change_the_output_by_far_more_than_the_limit(exporter, tiny_model) -> None:
    base = eager(exporter, tiny_model, None)
    for name in ("shout", "pirate"):
        assert apart(eager(exporter, tiny_model, name), base) > 20 * STRICT


def test_the_session_says_that_it_evaluates(bundle: Bundle) -> None:
    with CoremlBackend().open(bundle, CoremlSessionOptions()) as session:
        assert session.facts["evaluates"] is True
        assert "nothing ran on CoreML" in session.facts["runtime"]
        assert "silu" in session.facts["own_references"]
        assert session.facts["context_len"] == 21


def test_both_evaluations_are_reported_and_the_strict_one_is_returned(bundle: Bundle) -> None:
    with CoremlBackend().open(bundle, CoremlSessionOptions()) as session:
        logits = session.step("shout", TOKENS, 0)
        facts = session.facts
    alone = {}
    for precision in ("float16", "float32"):
        with CoremlBackend().open(bundle, CoremlSessionOptions(precision=precision)) as session:
            alone[precision] = session.step("shout", TOKENS, 0)
    strict, accumulating = alone["float16"], alone["float32"]
    # Rounded to float16, as the strict ones are and the accumulating ones are not.
    for each, rounded in ((logits, True), (strict, True), (accumulating, False)):
        assert np.array_equal(each, each.astype(np.float16).astype(each.dtype)) == rounded
    assert apart(logits, strict) <= STRICT
    assert facts["precision"] == "float16 and float32"
    spread = facts["float32_accumulating"]["shout"]
    assert spread["finite"]
    # What the session measured in this step and the ones before it is what two sessions of their own differ by, up to
    # a last place of float16 (values below 4) that another address of the weights may turn.
    last_place = 2.0**-9
    assert np.abs(strict - accumulating).max() - last_place <= spread["largest_difference"]
    assert spread["largest_difference"] <= STRICT * strict.std()


def test_an_unknown_adapter_is_refused_with_the_known_ones(bundle: Bundle) -> None:
    with (
        CoremlBackend().open(bundle, CoremlSessionOptions()) as session,
        pytest.raises(UsageError, match="pirate, shout"),
    ):
        session.load("parrot")


def test_a_cache_does_not_survive_a_change_of_adapter(bundle: Bundle) -> None:
    with CoremlBackend().open(bundle, CoremlSessionOptions()) as session:
        session.step("shout", TOKENS[:2], 0)
        with pytest.raises(UsageError, match="belongs to"):
            session.step("pirate", TOKENS[2:3], 2)


def damaged(bundle: Bundle, folder: Path, change) -> Bundle:
    """Return a copy of `bundle` whose program's CoreML model or weights `change` has edited in place."""
    copied = attrs.evolve(bundle, path=folder / "damaged")
    shutil.copytree(bundle.path, copied.path)
    path = copied.path / "model.pte"
    (found,) = package.stored_packages(pte.read(path))
    data = bytearray(path.read_bytes())
    change(data, found)
    path.write_bytes(bytes(data))
    return copied


def rewrite_model(data: bytearray, found: package.StoredPackage, change) -> None:
    start, size = found.region(package.MODEL)
    model = mil.parse_model(bytes(data[start : start + size]))
    change(model)
    serialized = mil.serialize(model)
    assert len(serialized) == size
    data[start : start + size] = serialized


def own_references(model) -> list:
    """Return shout's references to its own matrices: A and B of q_proj and v_proj, layer after layer."""
    functions = model.mlProgram.functions
    base = {value.offset for _, value in mil.blob_references(functions["forward"])}
    own = [value for _, value in mil.blob_references(functions["shout"]) if value.offset not in base]
    assert len(own) == 8
    return own


def offset_moved(data: bytearray, found: package.StoredPackage) -> None:
    def swap(model) -> None:
        first, second = (own_references(model)[number] for number in (0, 4))
        first.offset, second.offset = second.offset, first.offset

    rewrite_model(data, found, swap)


def functions_swapped(data: bytearray, found: package.StoredPackage) -> None:
    def swap(model) -> None:
        functions = model.mlProgram.functions
        kept = copy.deepcopy(functions["shout"])
        functions["shout"].CopyFrom(functions["pirate"])
        functions["pirate"].CopyFrom(kept)

    rewrite_model(data, found, swap)


def weight_flipped(data: bytearray, found: package.StoredPackage) -> None:
    start, size = found.region(package.MODEL)
    model = mil.parse_model(bytes(data[start : start + size]))
    weights, length = found.region(package.WEIGHTS)
    offset = own_references(model)[3].offset
    blob = blobfile.blob_at(bytes(data[weights : weights + length]), offset, where="B of the first v_proj")
    data[weights + blob.data_offset + 1] ^= 0x40  # the highest exponent bit of the first weight


@pytest.mark.parametrize("change", [offset_moved, functions_swapped, weight_flipped])
def test_a_damaged_package_differs_from_the_eager_model(exporter, tiny_model, bundle: Bundle, tmp_path, change) -> None:
    expected = eager(exporter, tiny_model, "shout")[-1]
    with CoremlBackend().open(damaged(bundle, tmp_path, change), CoremlSessionOptions(precision="float32")) as session:
        found = session.step("shout", TOKENS, 0)
    assert not apart(found, expected) < 5 * ACCUMULATING


def test_an_offset_outside_the_blob_file_is_an_error_that_names_the_function(bundle: Bundle, tmp_path) -> None:
    def outside(model) -> None:
        references = [value for _, value in mil.blob_references(model.mlProgram.functions["shout"])]
        references[-1].offset += 32  # same length on disk, and no record begins there

    broken = damaged(bundle, tmp_path, lambda data, found: rewrite_model(data, found, outside))
    with pytest.raises(BundleError, match="shout"), CoremlBackend().open(broken, CoremlSessionOptions()) as session:
        session.step("shout", TOKENS, 0)
    with pytest.raises(BundleError):
        list(CoremlBackend().sharing.blobs(broken))


def test_a_base_that_is_another_one_is_refused(bundle: Bundle, tmp_path) -> None:
    def another(data: bytearray, found: package.StoredPackage) -> None:
        start, _ = found.region(package.WEIGHTS)
        data[start + 2 * blobfile.ALIGNMENT] ^= 1  # the first byte of the first weight

    with pytest.raises(BundleError, match="stored foundation has fingerprint"):
        CoremlBackend().open(damaged(bundle, tmp_path, another), CoremlSessionOptions())


def test_a_closed_session_refuses(bundle: Bundle) -> None:
    session = CoremlBackend().open(bundle, CoremlSessionOptions())
    session.load("shout")
    session.close()
    for attempt in (lambda: session.load("shout"), lambda: session.step("shout", TOKENS, 0)):
        with pytest.raises(UsageError, match="session is closed"):
            attempt()


def test_a_program_cut_short_is_an_error(bundle: Bundle, tmp_path) -> None:
    cut = attrs.evolve(bundle, path=tmp_path)
    data = (bundle.path / "model.pte").read_bytes()
    (tmp_path / "model.pte").write_bytes(data[: len(data) // 2])
    with pytest.raises(LoraCoreError, match=r"[Ss]egment"):
        CoremlBackend().open(cut, CoremlSessionOptions())


def test_the_metadata_places_every_cache(bundle: Bundle) -> None:
    from lora_core_coreml.runtime.evaluation.program import EvaluatedProgram

    program = EvaluatedProgram(bundle.path / "model.pte")
    try:
        assert program.constant("adapters") == ["pirate", "shout"]
        assert program.constant("adapter_methods") == ["pirate", "shout"]
        assert program.constant("forward_input_len") == [4]
        assert program.constant("vocab_size") == [160]
        (caches,) = program.constant("kv_cache_specs")
        assert caches[:, 4].tolist() == [20, 20]
        assert len({*caches[:, 0], *caches[:, 2]}) == 4
        assert len({*caches[:, 1], *caches[:, 3]}) == 4
        assert json.dumps(sorted(program.methods)) == '["forward", "pirate", "shout"]'
    finally:
        program.close()
