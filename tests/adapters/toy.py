"""A small base without torch, and PEFT directories for it written by hand, right or wrong as a test needs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.peft.format import PeftFormat
from lora_core.layers import LayerInfo, ModelSummary

PREFIX = "base_model.model."
SIZES = {"self_attn.q_proj": (8, 8), "self_attn.v_proj": (8, 4), "mlp.up_proj": (8, 12)}
EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
SMOLLM2 = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (576, 192),
    "self_attn.v_proj": (576, 192),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (576, 1536),
    "mlp.up_proj": (576, 1536),
    "mlp.down_proj": (1536, 576),
}

Tensors = dict[str, npt.NDArray[Any]]


def base_of(
    sizes: Mapping[str, tuple[int, int]] = SIZES,
    *,
    layers: int = 2,
    width: int = 8,
    rows: int = 16,
    family: str = "llama",
) -> ModelSummary:
    """A base with `layers` layers that have linear layers of `sizes` (in, out), an embedding and an output head."""
    names = ["", "model", "model.embed_tokens", "model.layers"]
    infos = [_layer("model.embed_tokens", rows, width, kind="embedding")]
    for index in range(layers):
        names += [f"model.layers.{index}", f"model.layers.{index}.input_layernorm"]
        for part, (inputs, outputs) in sizes.items():
            names.append(f"model.layers.{index}.{part}")
            infos.append(_layer(names[-1], inputs, outputs))
    names += ["model.norm", "lm_head"]
    infos.append(_layer("lm_head", width, rows, is_output=True))
    return ModelSummary(
        name="toy", family=family, layers=tuple(infos), module_names=tuple(names), identities=("org/toy", "toy-dir")
    )


def smollm2() -> ModelSummary:
    """The layers of SmolLM2-135M-Instruct, which the example adapters are for."""
    return base_of(SMOLLM2, layers=30, width=576, rows=49152)


def tensors_of(base: ModelSummary, *parts: str, rank: int = 2, seed: int = 0) -> Tensors:
    """Random A and B for every layer of `base` whose name ends in one of `parts`."""
    random = np.random.default_rng(seed)
    found: Tensors = {}
    for layer in base.layers:
        if layer.name.endswith(parts):
            found[f"{PREFIX}{layer.name}.lora_A.weight"] = _normal(random, rank, layer.in_features)
            found[f"{PREFIX}{layer.name}.lora_B.weight"] = _normal(random, layer.out_features, rank)
    return found


def write(directory: Path, tensors: Mapping[str, npt.NDArray[Any]], **config: Any) -> Path:
    """Write a PEFT directory: r=2, alpha=4 on q_proj and v_proj unless `config` says otherwise."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), directory / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(plain | config))
    return directory


def made(
    directory: Path,
    base: ModelSummary,
    *parts: str,
    name: str | None = None,
    rank: int = 2,
    alpha: float = 4,
    seed: int = 0,
    rslora: bool = False,
) -> Adapter:
    """Write and read a good adapter on the layers of `base` that end in `parts`."""
    write(
        directory,
        tensors_of(base, *parts, rank=rank, seed=seed),
        r=rank,
        lora_alpha=alpha,
        target_modules=list(parts),
        use_rslora=rslora,
        base_model_name_or_path="org/toy",
    )
    return PeftFormat().read(name or directory.name, directory, base)


def deltas(adapter: Adapter) -> dict[str, npt.NDArray[np.float64]]:
    """What the adapter adds to the weight of each module, in double precision."""
    return {
        update.module: update.scaling
        * (update.tensors["b"].read().astype(np.float64) @ update.tensors["a"].read().astype(np.float64))
        for update in adapter.updates
    }


def _layer(name: str, inputs: int, outputs: int, *, kind: Any = "linear", is_output: bool = False) -> LayerInfo:
    return LayerInfo(name=name, kind=kind, in_features=inputs, out_features=outputs, is_output=is_output)


def _normal(random: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.float32]:
    return random.standard_normal((rows, columns)).astype(np.float32)
