"""Files for the vendor's tools: their schemas, and names that agree across all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from lora_core_qnn_sim.artifacts.context_binary import read_context
from lora_core_qnn_sim.artifacts.foundation import read_foundation
from lora_core_qnn_sim.backend import QnnSimBackend
from lora_core_qnn_sim.encodings.aimet import read_aimet
from lora_core_qnn_sim.graph.nodes import activations, build_nodes, lora_weights
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.grouping import read_groups
from lora_core_qnn_sim.handover.from_bundle import handover_from_bundle
from lora_core_qnn_sim.handover.model import write_model
from lora_core_qnn_sim.handover.readme import readme
from lora_core_qnn_sim.lora import real_lora
from lora_core_qnn_sim.runtime.floating import FloatRun
from lora_core_qnn_sim.runtime.weights import BaseWeights
from lora_core_qnn_sim.vendor.genie import check_genie
from lora_core_qnn_sim.vendor.libraries import NOT_INSTALLED, VendorLibraries
from safetensors.numpy import load_file

from lora_core.bundle.bundle import Artifact
from lora_core.bundle.hashing import file_sha256
from lora_core.errors import UnsupportedError
from lora_core.events import ignore
from lora_core.pipeline.recording import bundled
from lora_core.testing.families import write_tiny_family
from plugins.qnn_sim.tests import tiny
from tests.numeric import apart, decoder_tolerance

NAMES = ["a1", "a2", "a3", "a4", "a5"]
GROUPS = ("g1=a1,a2", "g2=a3,a4", "g3=a5")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, model: Any, five: Any) -> Any:
    directory = tmp_path_factory.mktemp("handover")
    return tiny.export(tiny.make_job(model, five, group=GROUPS, emit_qairt=directory / "hand"), directory / "out")


@pytest.fixture(scope="module")
def hand(bundle: Any) -> Path:
    return Path(bundle.path).parent / "hand"


def test_whoever_can_read_one_file_can_read_all(hand: Path) -> None:
    assert len({path.stat().st_mode for path in hand.iterdir()}) == 1


def test_every_file_of_the_hand_over_is_there_and_no_other(hand: Path) -> None:
    expected = {
        "README.md",
        "lora_weight_list.txt",
        "lora_importer_config.yaml",
        "lora_adapter_weights.yaml",
        "lora_adaptor_list.yaml",
        "genie_config.json",
        "llm.encodings",
        "llm.onnx",
        "llm.onnx.data",
    }
    expected |= {f"{name}.safetensors" for name in NAMES} | {f"llm_{name}.encodings" for name in NAMES}
    expected |= {f"{name}_ort_qnn.txt" for name in NAMES}
    assert {path.name for path in hand.iterdir()} == expected


# What Genie would rotate: phi3 without LongRoPE.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": {},
    "gemma2": {"sliding_window": 32},
    "phi3": {"rope_scaling": None, "partial_rotary_factor": 0.75},
    "smollm3": {},
    "granite": {},
    "olmo2": {},
}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", *FAMILIES])
def test_the_model_computes_what_the_graph_computes(tmp_path: Path, family: str) -> None:
    if family in FAMILIES:
        write_tiny_family(tmp_path / "model", family, **FAMILIES[family])
    else:
        tiny.write_checkpoint(tmp_path / "model", model_type=family)
    base = tiny.open_model(tmp_path / "model")
    one = tiny.adapter("one", base.summary, seed=3, targets=("q_proj", "qkv_proj", "o_proj", "down_proj"))
    stored = tiny.export(tiny.make_job(base, [one], rotate=False, split_outliers=False), tmp_path / "out")
    spec = read_context(stored.file("context.bin")).spec
    foundation = read_foundation(stored.file("foundation.bin"))
    lora = real_lora(spec, tiny.placed(stored, one), foundation.basis)
    write_model(tmp_path, spec, foundation.base, lora)
    tokens = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], np.int64)
    run = FloatRun(spec=spec, weight=foundation.base.real, base=foundation.base, lora=lora)
    steps = decoder_tolerance(layers=tiny.LAYERS, hidden=tiny.DIM, inner=tiny.HIDDEN, context=spec.context_len, rank=4)
    session = onnxruntime.InferenceSession(tmp_path / "llm.onnx", providers=["CPUExecutionProvider"])
    assert apart(called(session, spec, foundation.base, tokens), run.logits([tokens])[0]) <= steps


def called(session: onnxruntime.InferenceSession, spec: GraphSpec, base: BaseWeights, tokens: Any) -> Any:
    """Return the logits of `tokens`, given call by call; keys and values are put at the end of the cache."""
    names = [each.name for each in session.get_outputs()]
    cache = {each.name: np.zeros(each.shape, np.float32) for each in session.get_inputs() if "past_" in each.name}
    rows, past = [], spec.context_len - spec.input_len
    for start in range(0, len(tokens), spec.input_len):
        where = slice(start, start + spec.input_len)
        mask = np.where(np.tri(spec.input_len, spec.context_len, past) > 0, 0, -1e30).astype(np.float32)
        mask[:, : past - start] = -1e30
        given = {"input_ids": tokens[None, where].astype(np.int32), "lora_alpha": np.ones(1, np.float32)}
        given |= {
            f"position_ids_{part}": table[None, None, where] for part, table in (("cos", base.cos), ("sin", base.sin))
        }
        made = dict(zip(names, session.run(names, {**given, **cache, "attention_mask": mask[None, None]}), strict=True))
        rows.append(made.pop("logits")[0])
        for name, new in made.items():
            axis = 3 if "key" in name else 2
            kept = name.removesuffix("_out") + "_in"
            cache[kept] = np.concatenate([cache[kept], new], axis=axis).take(range(-past, 0), axis=axis)
    return np.concatenate(rows)


def test_the_models_initializers_are_those_of_weight_list_and_encodings(hand: Path) -> None:
    model = onnx.load(hand / "llm.onnx", load_external_data=False)
    onnx.checker.check_model(str(hand / "llm.onnx"))
    stored = {each.name for each in model.graph.initializer}
    made = {name for node in model.graph.node for name in node.output}
    assert set((hand / "lora_weight_list.txt").read_text().split()) <= stored
    assert set(read_aimet(hand / "llm.encodings")) <= stored | made


def test_the_weight_list_names_the_updatable_tensors_in_natural_order(hand: Path, bundle: Any) -> None:
    lines = (hand / "lora_weight_list.txt").read_text().splitlines()
    spec = read_context(bundle.file("context.bin")).spec
    assert set(lines) == set(lora_weights(spec))
    assert lines == sorted(lines, key=lambda name: [int(p) if p.isdigit() else p for p in name.split(".")])


def test_safetensors_hold_exactly_the_listed_tensors_at_the_graphs_shapes(hand: Path, bundle: Any, five: Any) -> None:
    spec = read_context(bundle.file("context.bin")).spec
    for adapter in five:
        tensors = load_file(hand / f"{adapter.name}.safetensors")
        assert {name: array.shape for name, array in tensors.items()} == lora_weights(spec)
        update = adapter.updates[0]
        layer = update.module.removeprefix("model.")
        assert np.array_equal(tensors[f"{layer}.lora_a.weight"], update.tensors["a"].read())
        assert np.array_equal(
            tensors[f"{layer}.lora_b.weight"], update.tensors["b"].read() * np.float32(update.scaling)
        )


def test_encodings_cover_every_quantized_tensor(hand: Path, bundle: Any) -> None:
    spec = read_context(bundle.file("context.bin")).spec
    needed = set(activations(build_nodes(spec))) | set(lora_weights(spec))
    for name in ("llm", *(f"llm_{name}" for name in NAMES)):
        assert needed <= set(read_aimet(hand / f"{name}.encodings"))
        assert json.loads((hand / f"{name}.encodings").read_text())["version"] == "1.0.0"


def test_the_importer_config_has_one_use_case_for_each_adapter(hand: Path) -> None:
    cases = yaml.safe_load((hand / "lora_importer_config.yaml").read_text())["use_case"]
    assert [case["name"] for case in cases] == NAMES
    for case in cases:
        assert set(case) == {"name", "model_name", "lora_weights", "quant_overrides", "output_path"}
        assert (hand / case["lora_weights"]).is_file()
        assert (hand / case["quant_overrides"]).is_file()


def test_the_adapter_weight_config_reads_back_as_the_same_groups(hand: Path) -> None:
    path = hand / "lora_adapter_weights.yaml"
    cases = {case["name"]: case for case in yaml.safe_load(path.read_text())["use_case"]}
    flags = {n: (case.get("weights_only", False), case.get("encodings_only", False)) for n, case in cases.items()}
    both, weights, neither = (True, True), (True, False), (False, False)
    assert flags == {"a1": both, "a2": weights, "a3": both, "a4": weights, "a5": neither}
    assert [group.members for group in read_groups(path)] == [("a1", "a2"), ("a3", "a4")]
    for case in cases.values():
        assert (hand / case["safetensors"]).is_file()
        assert (hand / case["encodings"]).is_file()


def test_the_weights_key_of_the_vendors_package_is_an_option_that_the_readme_names(tmp_path: Path, bundle: Any) -> None:
    handover_from_bundle(bundle, tmp_path, "weights")
    cases = yaml.safe_load((tmp_path / "lora_adapter_weights.yaml").read_text())["use_case"]
    assert all("safetensors" not in case and (tmp_path / case["weights"]).is_file() for case in cases)
    assert "Here it is `weights`" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("mode", "told"), [("none", "is left out"), ("adapter_only", "set `assume_same_quant: true`")])
def test_the_readme_says_what_the_mode_means_for_equal_encodings(mode: Any, told: str) -> None:
    (line,) = [line for line in readme(mode, "safetensors").splitlines() if "assume_same_quant" in line]
    assert f"mode `{mode}`" in line
    assert told in line


def test_the_adaptor_list_has_its_three_keys(hand: Path) -> None:
    entries = yaml.safe_load((hand / "lora_adaptor_list.yaml").read_text())
    assert [entry["name"] for entry in entries] == NAMES
    for entry in entries:
        assert set(entry) == {"name", "encodings_path", "safetensor_path"}
        assert (hand / entry["encodings_path"]).is_file()
        assert (hand / entry["safetensor_path"]).is_file()


def test_the_genie_config_names_sections_that_exist_and_declared_members(hand: Path, bundle: Any) -> None:
    lora = json.loads((hand / "genie_config.json").read_text())["dialog"]["engine"]["model"]["binary"]["lora"]
    assert lora["version"] == 1
    assert lora["alpha-tensor-name"] == "lora_alpha"
    declared = [adapter["name"] for adapter in lora["adapters"]]
    assert declared == NAMES
    for adapter in lora["adapters"]:
        assert set(adapter) == {"version", "name", "alphas", "bin-sections"}
        assert all((bundle.path / "sections" / name).is_file() for name in adapter["bin-sections"])
    assert {group["name"]: group["members"] for group in lora["groups"]} == {"g1": ["a1", "a2"], "g2": ["a3", "a4"]}
    for group in lora["groups"]:
        assert set(group) == {"version", "name", "members", "quant-bin-sections"}
        assert set(group["members"]) <= set(declared)
        assert all((bundle.path / "sections" / name).is_file() for name in group["quant-bin-sections"])


def test_the_genie_config_is_a_whole_dialog_with_the_models_own_facts(hand: Path, bundle: Any) -> None:
    dialog = json.loads((hand / "genie_config.json").read_text())["dialog"]
    spec = read_context(bundle.file("context.bin")).spec
    assert dialog["context"] == {
        "version": 1,
        "size": spec.context_len,
        "n-vocab": spec.dims.vocab_size,
        "bos-token": 1,
        "eos-token": [2],
    }
    assert dialog["engine"]["backend"]["QnnHtp"]["kv-dim"] == spec.dims.head_dim
    assert dialog["engine"]["model"]["binary"]["lora"]["lora-version"] == 3


MODES: list[dict[str, Any]] = [
    {"quant_updatable": "none"},
    {"quant_updatable": "adapter_only"},
    {"quant_updatable": "all"},
    {"group": ("g1=a1,a2",)},
]


@pytest.mark.parametrize("options", MODES, ids=lambda options: "-".join(map(str, options.values())))
def test_genie_takes_the_configuration_of_every_mode(
    tmp_path: Path, model: Any, five: Any, options: dict[str, Any]
) -> None:
    tiny.export(tiny.make_job(model, five[:3], emit_qairt=tmp_path / "hand", **options), tmp_path / "out")
    verdict = check_genie(tmp_path / "hand" / "genie_config.json")
    libraries = VendorLibraries.find()
    expected = ("unchecked", NOT_INSTALLED) if libraries is None else ("accepted", libraries.name)
    assert (verdict.outcome, verdict.detail) == expected


def test_genie_refuses_what_is_no_dialog(tmp_path: Path) -> None:
    config = tmp_path / "genie_config.json"
    config.write_text(json.dumps({"dialog": {"engine": {"model": {"binary": {"version": 1}}}}}))
    verdict = check_genie(config)
    assert verdict.outcome == ("unchecked" if VendorLibraries.find() is None else "refused")


def test_a_genie_that_cannot_be_loaded_says_nothing_about_a_configuration(
    tmp_path: Path, hand: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VendorLibraries, "find", lambda: VendorLibraries(directory=tmp_path, version="0"))
    verdict = check_genie(hand / "genie_config.json")
    assert verdict.outcome == "unchecked"
    assert "libGenie.so" in verdict.detail


def test_the_line_file_has_graph_and_section(hand: Path, bundle: Any) -> None:
    for name in NAMES:
        (line,) = (hand / f"{name}_ort_qnn.txt").read_text().splitlines()
        graph, section = line.split(";")
        assert graph == "llm"
        assert (bundle.path / "sections" / section).is_file()


def test_files_say_what_rests_on_facts_that_are_not_verified(hand: Path) -> None:
    readme = (hand / "README.md").read_text()
    assert "Not verified against the SDK" in readme
    listed = ("lora_weight_list.txt", "lora_importer_config.yaml", "genie_config.json", "NAME_ort_qnn.txt")
    assert all(name in readme for name in listed)
    for path in hand.glob("*.yaml"):
        assert path.read_text().startswith("#")
        assert "README.md" in path.read_text().splitlines()[0]


def test_a_stored_bundle_gives_the_same_files_and_weights_that_quantize_to_its_own(
    tmp_path: Path, hand: Path, bundle: Any
) -> None:
    assert handover_from_bundle(bundle, tmp_path / "again") == NAMES
    for path in hand.iterdir():
        again = tmp_path / "again" / path.name
        if path.suffix != ".safetensors":
            assert again.read_bytes() == path.read_bytes(), path.name
            continue
        grids = {
            n: entry.per_tensor
            for n, entry in read_aimet(hand / f"llm_{path.stem}.encodings").items()
            if len(entry.scales) == 1
        }
        ours, stored = load_file(path), load_file(again)
        assert all(np.array_equal(grids[n].quantize(ours[n]), grids[n].quantize(stored[n])) for n in ours)


def test_an_added_adapter_is_handed_over_too(tmp_path: Path, model: Any, five: Any) -> None:
    options = {"rotate": False, "split_outliers": False, "quant_updatable": "all"}
    part = tiny.export(tiny.make_job(model, five[:1], **options), tmp_path / "part")
    added = tiny.placed(part, five[1])
    made = QnnSimBackend().link(part, added, part.path, ignore)
    stored = [
        Artifact(path=file.path, role=file.role, size=path.stat().st_size, sha256=file_sha256(path))
        for file, path in ((file, part.path / file.path) for file in made.files)
    ]
    both = attrs.evolve(
        part.manifest,
        adapters=(*part.manifest.adapters, *bundled(added, made, {})),
        artifacts=tuple({each.path: each for each in (*part.manifest.artifacts, *stored)}.values()),
    )
    assert handover_from_bundle(attrs.evolve(part, manifest=both), tmp_path / "hand") == ["a1", "a2"]
    assert {"a2.safetensors", "llm_a2.encodings", "a2_ort_qnn.txt"} <= {p.name for p in (tmp_path / "hand").iterdir()}

    # Into the same directory without it: its files go, and what is not wholly an adapter's stays.
    (tmp_path / "hand" / "mine.safetensors").write_bytes(b"")
    handover_from_bundle(part, tmp_path / "hand")
    handover_from_bundle(part, tmp_path / "fresh")
    left = {each.name: each.read_bytes() for each in (tmp_path / "hand").iterdir()}
    assert left.pop("mine.safetensors") == b""
    assert left == {each.name: each.read_bytes() for each in (tmp_path / "fresh").iterdir()}


def test_a_rotated_bundle_is_not_handed_over_and_the_refusal_says_how(tmp_path: Path, grouped: Any) -> None:
    with pytest.raises(UnsupportedError, match="--no-rotate --no-split-outliers"):
        handover_from_bundle(grouped, tmp_path / "hand")
    assert not (tmp_path / "hand").exists()


def test_a_hot_switch_bundle_has_nothing_to_hand_over(tmp_path: Path, model: Any, five: Any) -> None:
    bundle = tiny.export(tiny.make_job(model, five[:2], hot_switch=True), tmp_path / "out")
    with pytest.raises(UnsupportedError, match="no sections to hand over"):
        handover_from_bundle(bundle, tmp_path / "hand")


def test_a_group_whose_leader_was_removed_is_not_handed_over(tmp_path: Path, bundle: Any) -> None:
    left = tuple(each for each in bundle.manifest.adapters if each.name != "a1")
    without = attrs.evolve(bundle, manifest=attrs.evolve(bundle.manifest, adapters=left))
    with pytest.raises(UnsupportedError, match="'g1' bear the name of an adapter that was removed"):
        handover_from_bundle(without, tmp_path / "hand")
