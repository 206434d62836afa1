"""A tiny random Llama checkpoint, adapters as data, and exports of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from lora_core_qnn_sim.backend import QnnSimBackend
from lora_core_qnn_sim.options import QnnSimOptions
from lora_core_qnn_sim.quant import POLICIES
from safetensors.numpy import save_file

from lora_core.adapters.adapter import Adapter, Update
from lora_core.adapters.slots.choice import PlacedAdapter, place
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.bundle.bundle import Bundle, Manifest
from lora_core.events import Event, ignore
from lora_core.layers import ModelSummary
from lora_core.models.hf import HfModel, HfModelSource
from lora_core.pipeline.recording import bundled, recorded

DIM, HIDDEN, LAYERS, VOCAB = 32, 48, 2, 96
LINEARS = {
    "self_attn.q_proj": (32, DIM),
    "self_attn.k_proj": (16, DIM),
    "self_attn.v_proj": (16, DIM),
    "self_attn.o_proj": (DIM, 32),
    "mlp.gate_proj": (HIDDEN, DIM),
    "mlp.up_proj": (HIDDEN, DIM),
    "mlp.down_proj": (DIM, HIDDEN),
}
POLICY = {policy.name: policy for policy in POLICIES}


def write_checkpoint(directory: Path, *, model_type: str = "llama", massive: float = 1.0, **changes: Any) -> Path:
    """Write a random checkpoint: 4 heads of 8 sharing 2 keys, tied embeddings.

    `massive` makes channel 5 of the last MLP so much larger, and what it writes as much smaller.
    """
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [model_type.capitalize() + "ForCausalLM"],
        "hidden_size": DIM,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes
    rng = np.random.default_rng(7)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(VOCAB, DIM), "model.norm.weight": 1 + matrix(DIM)}
    for n in range(config["num_hidden_layers"]):
        p = f"model.layers.{n}"
        for name, (out, width) in LINEARS.items():
            tensors[f"{p}.{name}.weight"] = matrix(out, width)
            if model_type == "qwen2" and name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                tensors[f"{p}.{name}.bias"] = matrix(out)
        if model_type == "qwen3":
            tensors[f"{p}.self_attn.q_norm.weight"] = 1 + matrix(8)
            tensors[f"{p}.self_attn.k_norm.weight"] = 1 + matrix(8)
        tensors[f"{p}.input_layernorm.weight"] = 1 + matrix(DIM)
        tensors[f"{p}.post_attention_layernorm.weight"] = 1 + matrix(DIM)
    last = f"model.layers.{config['num_hidden_layers'] - 1}.mlp"
    tensors[f"{last}.up_proj.weight"][5] *= massive
    tensors[f"{last}.down_proj.weight"][:, 5] /= massive
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def open_model(directory: Path) -> HfModel:
    return HfModelSource().open(str(directory))


@attrs.frozen(kw_only=True, eq=False)
class ArrayTensor:
    """A tensor in memory as a lazy one."""

    name: str
    array: np.ndarray
    dtype: str = "F32"
    path: Path = Path("memory")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self) -> np.ndarray:
        return self.array


def adapter(
    name: str,
    summary: ModelSummary,
    *,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    size: float = 0.2,
    scaling: float = 2.0,
) -> Adapter:
    rng = np.random.default_rng(seed)
    updates = []
    for layer in summary.layers:
        if layer.name.endswith(tuple(targets)):
            a = (rng.standard_normal((rank, layer.in_features)) * size).astype(np.float32)
            b = (rng.standard_normal((layer.out_features, rank)) * size).astype(np.float32)
            tensors = {part: ArrayTensor(name=part, array=array) for part, array in (("a", a), ("b", b))}
            updates.append(Update(module=layer.name, tensors=tensors, scaling=scaling))
    return Adapter(name=name, updates=tuple(updates), digest=f"{seed:064x}", source="memory")


def make_job(model: HfModel, adapters: Sequence[Adapter] = (), *, policy: str = "w8a16", **options: Any) -> ExportJob:
    ordered = tuple(sorted(adapters, key=lambda each: each.name))
    plans = (SlotPlan.from_adapters(ordered, model.summary.layers),) if ordered else ()
    defaults = {"context_len": 32, "input_len": 8}
    return ExportJob(
        model=model,
        adapters=place(ordered, plans),
        plans=plans,
        policy=POLICY[policy],
        options=QnnSimOptions(**defaults | options),
    )


def export(job: ExportJob, out: Path, heard: list[Event] | None = None) -> Bundle:
    """Export as the pipeline does, with a manifest in memory only."""
    out.mkdir(parents=True)
    problems = QnnSimBackend().check(job)
    assert not problems, problems
    made = QnnSimBackend().export(job, out, ignore if heard is None else heard.append)
    manifest = Manifest(
        backend="qnn_sim",
        base=job.model.summary,
        policy={},
        foundation=made.foundation,
        plans=job.plans,
        options={},
        versions=made.versions,
        artifacts=recorded(made.files, out, "qnn_sim"),
        adapters=bundled(job.adapters, made, {}),
        methods=made.methods,
        detail=made.detail,
    )
    return Bundle(path=out, manifest=manifest)


def placed(bundle: Bundle, *adapters: Adapter) -> tuple[PlacedAdapter, ...]:
    """Return adapters on the plan of `bundle`, as the pipeline hands them to a link."""
    return place(adapters, bundle.manifest.plans)


def sections(bundle: Bundle) -> Mapping[str, bytes]:
    """Return the section files of a bundle by name."""
    return {path.name: path.read_bytes() for path in sorted((bundle.path / "sections").iterdir())}
