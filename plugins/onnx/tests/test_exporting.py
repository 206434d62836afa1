"""What an export writes: the base once and piece by piece, adapters as ONNX Runtime writes them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from lora_core_onnx.genai import context_len_of
from lora_core_onnx.graph import weights
from lora_core_onnx.sharing import external_tensors
from lora_core_onnx.storage.adapter_file import read_adapter, version_of

import lora_core
from lora_core.backend import ExportJob
from lora_core.errors import BundleError, LoraCoreError, UnsupportedError, UsageError
from lora_core.events import ignore
from lora_core.hub import PluginHub
from lora_core.models.hf import HfModelSource
from lora_core.quant.fitting import dequantized
from lora_core.tensors import StoredTensor
from lora_core.testing.tiny import TINY_LLAMA, write_tiny_adapter, write_tiny_checkpoint

FILES = ("model.onnx", "model.onnx.data", "genai_config.json")
OPTIONS = {"max_context_len": 32}


def export(model: Path, out: Path, policy: str = "fp32", **options: Any) -> Path:
    lora_core.export(model, backend="onnx", policy=policy, out=out, options={**OPTIONS, **options})
    return out


@pytest.mark.parametrize("policy", ["fp32", "16w", "8w", "4w"])
def test_no_more_than_a_block_of_a_tensor_is_read_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sources: dict[str, Path], policy: str
) -> None:
    expected = export(sources["model"], tmp_path / "whole", policy)
    blocks = []
    read_rows, read_whole = StoredTensor.read_rows, StoredTensor.read

    def noted(read: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        blocks.append(read.nbytes)
        return read

    monkeypatch.setattr(StoredTensor, "read_rows", lambda self, start, stop: noted(read_rows(self, start, stop)))
    monkeypatch.setattr(StoredTensor, "read", lambda self: noted(read_whole(self)))  # of a vector
    monkeypatch.setattr(weights, "BLOCK_BYTES", 1024)
    found = export(sources["model"], tmp_path / "pieces", policy)
    assert max(blocks) <= 1024
    assert {name: (found / name).read_bytes() for name in FILES} == {
        name: (expected / name).read_bytes() for name in FILES
    }


def test_a_tied_embedding_is_stored_once(sources: dict[str, Path], tmp_path: Path) -> None:
    tied = export(sources["model"], tmp_path / "tied")
    apart = write_tiny_checkpoint(tmp_path / "model", config={**TINY_LLAMA, "tie_word_embeddings": False})
    size = 4 * TINY_LLAMA["vocab_size"] * TINY_LLAMA["hidden_size"]
    grown = (export(apart, tmp_path / "apart") / FILES[1]).stat().st_size - (tied / FILES[1]).stat().st_size
    assert size <= grown < size + 64


def test_a_tied_embedding_of_the_heads_scheme_is_stored_once(sources: dict[str, Path], tmp_path: Path) -> None:
    tied = export(sources["model"], tmp_path / "tied", "4w")
    tensors = {tensor.name: tensor for tensor in external_tensors(tied / FILES[0])}
    table, head = tensors["model.embed_tokens.weight.8bit"], tensors["lm_head.weight.8bit"]
    rows, width = TINY_LLAMA["vocab_size"], TINY_LLAMA["hidden_size"]
    assert (table.shape, head.shape) == ((rows, width), (rows, width // 32, 32))
    assert (table.offset, table.size) == (head.offset, head.size) != (0, 0)
    assert "lm_head.weight.scales" not in tensors


def test_an_embedding_can_stay_in_float(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    lora_core.export(sources["model"], backend="onnx", policy="4w", embedding="float", out=out, options=OPTIONS)
    names = {tensor.name for tensor in external_tensors(out / FILES[0])}
    assert {"model.embed_tokens.weight", "lm_head.weight.8bit", "lm_head.weight.scales"} <= names


def test_rows_of_a_quantized_table_are_what_the_head_multiplies_with(sources: dict[str, Path], tmp_path: Path) -> None:
    out = export(sources["model"], tmp_path / "out", "8w")
    model = onnx.load(out / FILES[0], load_external_data=False)
    model.graph.output.append(onnx.helper.make_tensor_value_info("model.embed_tokens.out", 1, None))
    (out / FILES[0]).write_bytes(model.SerializeToString())
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # it warns of inputs that may be left out
    session = onnxruntime.InferenceSession(str(out / FILES[0]), quiet, providers=["CPUExecutionProvider"])
    ids = [5, 0, 77]
    empty = np.zeros((1, TINY_LLAMA["num_key_value_heads"], 0, 16), np.float32)
    given = {each.name: empty for each in session.get_inputs() if each.name.startswith("past_key_values")}
    given |= {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    (found,) = session.run(["model.embed_tokens.out"], given)
    table = HfModelSource().open(str(sources["model"])).tensors()["model.embed_tokens.weight"].read()
    assert np.array_equal(found, weights.rounded(table, PluginHub().policies["8w"].output)[ids])


@pytest.mark.parametrize("kind", ["importance", "compensated"])
def test_layers_that_were_rounded_for_their_inputs_are_stored_so(
    monkeypatch: pytest.MonkeyPatch, sources: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(weights, "BLOCK_BYTES", 1024)  # of rows some at a time
    out = export(sources["model"], tmp_path / "out", "4w", rounding=kind)
    assert not list(out.glob(".rounded*"))
    model = HfModelSource().open(str(sources["model"]))
    options = PluginHub().options("onnx", {"rounding": kind})
    job = ExportJob(model=model, adapters=(), plans=(), policy=PluginHub().policies["4w"], options=options)
    (tmp_path / "work").mkdir()
    told = PluginHub().backend("onnx").rounding(job, tmp_path / "work", ignore)
    layer = model.summary.layer("model.layers.1.mlp.gate_proj")
    expected = told(layer, model.tensors()[f"{layer.name}.weight"].read())
    stored = {tensor.name: tensor for tensor in external_tensors(out / FILES[0])}
    data = (out / FILES[1]).read_bytes()
    packed, scales = (
        np.frombuffer(data, dtype, offset=place.offset, count=math.prod(place.shape)).reshape(place.shape)
        for place, dtype in (
            (stored[f"{layer.name}.weight.4bit"], np.uint8),
            (stored[f"{layer.name}.weight.scales"], np.float32),
        )
    )
    integers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(expected.shape).astype(np.int8) - np.int8(8)
    assert np.array_equal(dequantized(integers, scales), expected)
    assert not np.array_equal(
        expected, weights.rounded(model.tensors()[f"{layer.name}.weight"].read(), job.policy.linear)
    )


@pytest.mark.parametrize(("bits", "kept"), [(8, 2e-2), (4, 0.2)])
def test_quantized_weights_are_the_weights_but_for_half_a_step(bits: int, kept: float) -> None:
    rows = np.random.default_rng(5).standard_normal((6, 64)).astype(np.float32)
    packed, scales = weights.quantize(rows, bits, 32)
    flat = packed.reshape(6, -1)
    values = flat if bits == 8 else np.stack((flat & 15, flat >> 4), axis=-1).reshape(6, -1)
    steps = np.repeat(np.abs(scales), 32, axis=1)
    restored = (values.astype(np.float32) - 2 ** (bits - 1)) * np.repeat(scales, 32, axis=1)
    # The end of the range that has one value less may be cut by up to a step.
    assert np.abs(restored - rows).max() <= steps.max() * 1.001
    assert np.abs(restored - rows).mean() < kept


def test_an_adapters_file_says_which_base_it_is_for(bundle: Path) -> None:
    file = read_adapter(bundle / "adapters/alice.onnx_adapter")
    manifest = lora_core.inspect(bundle).bundle.manifest
    assert file.model_version == version_of(manifest.foundation)
    theirs = onnxruntime.AdapterFormat.read_adapter(str(file.path))
    assert theirs.get_model_version() == file.model_version
    values = {name: value.numpy() for name, value in theirs.get_parameters().items()}
    assert {each.name for each in file.parameters} == set(values)
    assert all(np.array_equal(file.read(each), values[each.name]) for each in file.parameters)


def test_an_adapter_of_another_base_is_refused(bundle: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    other = export(write_tiny_checkpoint(tmp_path / "other", seed=9), tmp_path / "foreign")
    lora_core.add(other, {"alice": sources["alice"]})
    (other / "adapters/alice.onnx_adapter").write_bytes((bundle / "adapters/alice.onnx_adapter").read_bytes())
    with lora_core.open(other) as session, pytest.raises(BundleError, match="another base"):
        session.load("alice")


def test_an_added_adapter_is_stored_as_an_exported_one(bundle: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    given = {name: sources[name] for name in ("alice", "bob")}
    lora_core.export(sources["model"], adapters=given, backend="onnx", out=tmp_path / "both", options=OPTIONS)
    names = sorted(
        path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file() and ".lora" not in str(path)
    )
    assert {name: (tmp_path / "both" / name).read_bytes() for name in names} == {
        name: (bundle / name).read_bytes() for name in names
    }


def test_a_model_of_the_base_alone_takes_no_adapters(sources: dict[str, Path], tmp_path: Path) -> None:
    alone = export(sources["model"], tmp_path / "alone", lora="none")
    with pytest.raises(BundleError, match="--lora none"):
        lora_core.add(alone, {"alice": sources["alice"]})
    with pytest.raises(LoraCoreError, match="adapters were given"):
        lora_core.export(
            sources["model"],
            adapters={"alice": sources["alice"]},
            backend="onnx",
            out=tmp_path / "refused",
            options={**OPTIONS, "lora": "none"},
        )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_attention_heads": 8, "num_key_value_heads": 4}, "multiple of 16, and the model has 8"),
        ({"max_position_embeddings": 16}, "--max-context-len 32 is more than the base's 16 tokens. Give at most 16."),
    ],
)
def test_what_the_runtime_cannot_run_is_refused(tmp_path: Path, changes: dict[str, int], told: str) -> None:
    model = write_tiny_checkpoint(tmp_path / "model", config={**TINY_LLAMA, **changes})
    with pytest.raises(UnsupportedError, match=told):
        export(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, TINY_LLAMA["max_position_embeddings"]),
        ({"max_position_embeddings": 4096}, 2048),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 24}, 24),
    ],
)
def test_a_context_that_is_not_given_is_the_usual_or_what_the_base_has(
    tmp_path: Path, changes: dict[str, Any], context: int
) -> None:
    model = write_tiny_checkpoint(tmp_path / "model", config={**TINY_LLAMA, **changes})
    lora_core.export(model, backend="onnx", out=tmp_path / "out", options={})
    told = json.loads((tmp_path / "out/genai_config.json").read_text())
    assert (told["model"]["context_length"], told["search"]["max_length"]) == (context, context)
    with lora_core.open(tmp_path / "out") as session:
        assert session.facts["context_len"] == context
        session.step(None, list(range(1, 9)), 0)
        with pytest.raises(UsageError, match=f"do not fit in the context of {context} tokens"):
            session.step(None, [1] * context, 8)


@pytest.mark.parametrize("length", ["", '"32"', "true", "0", "33", str(10**12)])
def test_a_configuration_that_says_no_context_of_the_model_is_called_damaged(tmp_path: Path, length: str) -> None:
    file = tmp_path / "genai_config.json"
    file.write_text(f'{{"model": {{"context_length": {length}}}}}')
    with pytest.raises(BundleError, match=r"genai_config\.json is damaged or foreign"):
        context_len_of(file, 32)


def test_damage_to_an_adapter_file_is_called_damage_or_harmless(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / "adapters/alice.onnx_adapter").read_bytes()
    damaged, chance, refused = tmp_path / "damaged.onnx_adapter", np.random.default_rng(11), 0
    structure = [*range(48), *(int(place) for place in chance.integers(len(whole) - 8, size=150))]
    for place in structure:
        data = bytearray(whole)
        data[place : place + 4] = chance.bytes(4)
        damaged.write_bytes(data)
        try:
            read_adapter(damaged)
        except BundleError:
            refused += 1
    assert refused > 20


def test_an_adapter_file_that_is_cut_short_is_called_damaged(bundle: Path, tmp_path: Path) -> None:
    data = (bundle / "adapters/alice.onnx_adapter").read_bytes()
    for size in (0, 3, 11, 100, len(data) // 2, len(data) - 200):
        cut = tmp_path / f"{size}.onnx_adapter"
        cut.write_bytes(data[:size])
        with pytest.raises(BundleError, match="damaged or foreign"):
            read_adapter(cut)


def test_an_adapter_of_any_rank_and_target_is_added(bundle: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    added = export(sources["model"], tmp_path / "bundle")
    lora_core.add(added, {"wide": write_tiny_adapter(tmp_path / "wide", seed=4, rank=24, targets=("up_proj",))})
    with lora_core.open(added) as session:
        base, wide = (session.step(name, [1, 2, 3], 0) for name in (None, "wide"))
    assert not np.array_equal(base, wide)
