"""Formats beside PEFT's: MLX-LM and GGUF read as their authors defined them, and anything written as PEFT again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import gguf
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.adapters.adapter import Adapter
from lora_core.adapters.gguf.format import GgufFormat
from lora_core.adapters.mlx_lm.format import MlxLmFormat
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference
from lora_core.errors import AdapterError, UnsupportedError, UsageError
from tests.adapters.gguf_cases import write_gguf
from tests.adapters.toy import PREFIX, base_of, deltas, tensors_of, write

SIZES = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (32, 16), "mlp.down_proj": (64, 32)}
BASE = attrs.evolve(
    base_of(SIZES, width=32), config={"num_attention_heads": 4, "num_key_value_heads": 2}, identities=("org/toy",)
)
FORMATS = (PeftFormat(), MlxLmFormat(), GgufFormat())
Matrix = npt.NDArray[np.float32]


def factors(rank: int = 4, seed: int = 0) -> dict[str, tuple[Matrix, Matrix]]:
    """A and B by module, as PEFT has them."""
    stored = tensors_of(BASE, *SIZES, rank=rank, seed=seed)
    names = {key.removeprefix(PREFIX).partition(".lora_")[0] for key in stored}
    return {
        name: (stored[f"{PREFIX}{name}.lora_A.weight"], stored[f"{PREFIX}{name}.lora_B.weight"])
        for name in sorted(names)
    }


def write_mlx(directory: Path, pairs: dict[str, tuple[Matrix, Matrix]], **config: Any) -> Path:
    directory.mkdir(parents=True)
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"{module}.lora_a"] = np.ascontiguousarray(a.T)
        tensors[f"{module}.lora_b"] = np.ascontiguousarray(b.T)
    save_file(tensors, directory / "adapters.safetensors")
    plain = {
        "model": "org/toy",
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 4, "scale": 20.0},
    }
    (directory / "adapter_config.json").write_text(json.dumps(plain | config))
    return directory


def read(path: Path, base: Any = BASE) -> Adapter:
    (adapter,) = read_adapters([AdapterReference(name="tested", directory=path)], base, FORMATS)
    return adapter


def refusal(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        read(path)
    (problem,) = caught.value.problems
    return str(problem)


def assert_computes(adapter: Adapter, pairs: dict[str, tuple[Matrix, Matrix]], scaling: float) -> None:
    found = deltas(adapter)
    assert found.keys() == pairs.keys()
    for module, (a, b) in pairs.items():
        np.testing.assert_array_equal(found[module], scaling * (b.astype(np.float64) @ a.astype(np.float64)))


@pytest.mark.parametrize("scale", [20.0, 0.5, -1])
def test_an_mlx_adapter_is_its_scale_times_the_turned_factors(scale: float, tmp_path: Path) -> None:
    pairs = factors()
    adapter = read(write_mlx(tmp_path / "mlx", pairs, lora_parameters={"rank": 4, "scale": scale, "keys": ["x"]}))

    assert_computes(adapter, pairs, scale)
    assert adapter.base_model == "org/toy"


def test_an_mlx_adapter_of_half_precision_and_of_a_model_that_sees(tmp_path: Path) -> None:
    pairs = {name: (a.astype(np.float16), b.astype(np.float16)) for name, (a, b) in factors(rank=3).items()}
    directory = write_mlx(tmp_path / "mlx", {f"language_model.{name}": pair for name, pair in pairs.items()})

    assert_computes(read(directory), pairs, 20.0)


def test_an_mlx_adapter_given_as_two_files(tmp_path: Path) -> None:
    directory = write_mlx(tmp_path / "mlx", factors())
    files = [directory / name for name in ("adapters.safetensors", "adapter_config.json")]
    reference = AdapterReference(name="tested", weights=files[0], config=files[1], strength=0.5)

    (adapter,) = read_adapters([reference], BASE, FORMATS)

    assert_computes(adapter, factors(), 10.0)


@pytest.mark.parametrize("left", [{"rank": 4, "alpha": 16, "scale": 10.0}, {"rank": 8, "alpha": 8, "scale": 10.0}])
def test_an_alpha_that_mlx_ignores_is_ignored(left: dict[str, Any], tmp_path: Path) -> None:
    config = {"num_layers": 2} if left["alpha"] != left["rank"] else {"lora_layers": 2}

    assert_computes(read(write_mlx(tmp_path / "mlx", factors(), lora_parameters=left, **config)), factors(), 10.0)


MLX_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"fine_tune_type": "full"}, "full fine-tune of MLX-LM"),
    ({"fine_tune_type": "dora"}, "DoRA adapter of MLX-LM"),
    ({"fine_tune_type": "new"}, "type 'new'"),
    ({"lora_parameters": {"rank": 4}}, "scale must be a finite number, not None"),
    ({"lora_parameters": None}, "does not say the scale"),
]


@pytest.mark.parametrize(("config", "words"), MLX_REFUSED, ids=[words for _, words in MLX_REFUSED])
def test_what_mlx_trains_besides_is_refused_in_a_line(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal(write_mlx(tmp_path / "mlx", factors(), **config))


def test_a_scale_that_versions_of_mlx_read_differently_is_refused(tmp_path: Path) -> None:
    directory = write_mlx(tmp_path / "mlx", factors(), lora_parameters={"rank": 8, "alpha": 16, "scale": 10.0})
    config = json.loads((directory / "adapter_config.json").read_text())
    config["lora_layers"] = config.pop("num_layers")
    (directory / "adapter_config.json").write_text(json.dumps(config))

    assert "alpha / rank (16 / 8)" in refusal(directory)


def test_an_mlx_adapter_of_another_base_is_refused_in_a_line(tmp_path: Path) -> None:
    pairs = {name.replace("self_attn", "attention"): pair for name, pair in factors().items() if "q_proj" in name}

    assert "does not have" in refusal(write_mlx(tmp_path / "mlx", pairs))


def test_mlx_weights_of_a_full_fine_tune_are_told_for_what_they_are(tmp_path: Path) -> None:
    directory = write_mlx(tmp_path / "mlx", factors())
    save_file({"model.norm.weight": np.ones(32, np.float32)}, directory / "adapters.safetensors")

    assert "Is it a full fine-tune?" in refusal(directory)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_gguf_adapter_is_alpha_over_rank_times_its_factors(architecture: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", factors(), architecture=architecture, alpha=6.0)

    assert_computes(read(file, attrs.evolve(BASE, family=architecture)), factors(), 1.5)


def test_a_gguf_adapter_without_alpha_counts_once(tmp_path: Path) -> None:
    assert_computes(read(write_gguf(tmp_path / "a.gguf", factors(), alpha=0.0)), factors(), 1.0)


def test_a_directory_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", factors())

    assert_computes(read(tmp_path), factors(), 2.0)


@pytest.mark.parametrize(
    "dtype", [gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0]
)
def test_a_gguf_adapter_is_read_as_gguf_dequantizes_it(dtype: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    pairs = factors(rank=32)
    stored = {
        name: tuple(gguf.quants.dequantize(gguf.quants.quantize(each, dtype), dtype) for each in pair)
        for name, pair in pairs.items()
    }

    assert_computes(read(write_gguf(tmp_path / "a.gguf", pairs, dtype=dtype)), stored, 0.25)


GGUF_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "gemma2"}, "architecture is 'gemma2'"),
    ({"architecture": "qwen2"}, "base model 'toy' is 'llama'"),
    ({"metadata": {"adapter.alora.invocation_tokens": "1,2"}}, "activated LoRA"),
    ({"alpha": float("nan")}, "no finite number"),
]


@pytest.mark.parametrize(("changed", "words"), GGUF_REFUSED, ids=[words for _, words in GGUF_REFUSED])
def test_a_gguf_adapter_that_cannot_be_read_is_refused_in_a_line(
    changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    assert words in refusal(write_gguf(tmp_path / "a.gguf", factors(), **changed))


def test_a_gguf_model_is_no_adapter(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    assert "holds a model, not an adapter" in refusal(tmp_path / "model.gguf")


def test_every_cut_of_a_gguf_file_is_refused(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "a.gguf", factors()).read_bytes()
    for length in range(4, len(data) - 1, len(data) // 40):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        assert "no whole GGUF file" in refusal(tmp_path / "cut.gguf")


@pytest.mark.parametrize("form", ["mlx", "gguf", "peft"])
def test_convert_writes_what_reads_the_same(form: str, tmp_path: Path) -> None:
    pairs = factors(rank=3, seed=5)
    if form == "mlx":
        source = write_mlx(tmp_path / "mlx", pairs, lora_parameters={"rank": 3, "scale": 0.1})
    elif form == "gguf":
        source = write_gguf(tmp_path / "a.gguf", pairs, architecture="qwen2", alpha=16.0)
    else:
        tensors = tensors_of(BASE, *SIZES, rank=3, seed=5)
        wrapped = {f"module.{key}": value.astype(np.float16) for key, value in tensors.items()}
        parts = [part.rpartition(".")[2] for part in SIZES]
        source = write(tmp_path / "peft", wrapped, r=3, use_rslora=True, target_modules=parts)

    lora_core.convert(source, tmp_path / "out")
    again = PeftFormat().read("tested", tmp_path / "out", BASE)
    given = read(source, attrs.evolve(BASE, family="qwen2"))

    for update, original in zip(again.updates, given.updates, strict=True):
        assert update.module == original.module
        assert np.float32(update.scaling) == np.float32(original.scaling)  # what is folded into B
        assert [each.dtype for each in update.tensors.values()] == [each.dtype for each in original.tensors.values()]
        for part, tensor in update.tensors.items():
            np.testing.assert_array_equal(tensor.read(), original.tensors[part].read())


def test_convert_keeps_ranks_and_alphas_apart(tmp_path: Path) -> None:
    tensors = tensors_of(BASE, "q_proj", rank=2) | tensors_of(BASE, "k_proj", "down_proj", rank=5)
    source = write(
        tmp_path / "peft",
        tensors,
        target_modules=["q_proj", "k_proj", "down_proj"],
        rank_pattern={"k_proj": 5, "down_proj": 5},
        alpha_pattern={"layers.1.self_attn.k_proj": 7.5},
    )
    lora_core.convert(source, tmp_path / "out")

    again, given = (PeftFormat().read("tested", each, BASE) for each in (tmp_path / "out", source))

    assert [each.scaling for each in again.updates] == [each.scaling for each in given.updates]
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == tensors.keys()


def test_whoever_can_read_the_configuration_of_a_converted_adapter_can_read_its_weights(tmp_path: Path) -> None:
    lora_core.convert(write_mlx(tmp_path / "mlx", factors()), tmp_path / "out")
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


def test_convert_of_interleaved_rows_asks_for_the_base(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--model DIR"):
        lora_core.convert(write_gguf(tmp_path / "a.gguf", factors()), tmp_path / "out")


def test_convert_leaves_alone_what_is_there(tmp_path: Path) -> None:
    source = write_mlx(tmp_path / "mlx", factors())
    lora_core.convert(source, tmp_path / "out")

    with pytest.raises(UsageError, match="--force"):
        lora_core.convert(source, tmp_path / "out")
    lora_core.convert(source, tmp_path / "out", force=True)

    assert sorted(each.name for each in tmp_path.iterdir()) == ["mlx", "out"]
