"""Tiny bundles whose bytes must be the same on every processor, and the digests of their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

import lora_core
from lora_core.adapters.reference import AdapterReference, parse_references
from lora_core.backend import ExportJob
from lora_core.events import ignore
from lora_core.hub import PluginHub
from lora_core.models.hf import HfModelSource
from lora_core.models.rope import Rope
from lora_core.quant.policies import parse_policy

CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 96,  # not a power of two: the simulator's rotation then has a DCT factor
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
# The second adapter's scaling, 8 / 3, is no float32: folding it rounds.
ADAPTERS = {"alice": (1, 4, 8.0), "bob": (2, 3, 8.0)}
"""Seed, rank and alpha of each adapter."""

_PROJECTIONS = {
    "self_attn.q_proj": (96, 96),
    "self_attn.k_proj": (32, 96),
    "self_attn.v_proj": (32, 96),
    "self_attn.o_proj": (96, 96),
    "mlp.gate_proj": (160, 96),
    "mlp.up_proj": (160, 96),
    "mlp.down_proj": (96, 160),
}
_TARGETS = ("q_proj", "v_proj", "down_proj")


@attrs.frozen(kw_only=True)
class Case:
    """One export: a backend and what it is told."""

    backend: str
    policy: str
    layers: int = 1
    embedding: str | None = None
    head: str | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)


_XNNPACK = {"max_context_len": 64, "max_seq_len": 16}
_COREML = {"max_context_len": 24, "input_len": 4}
_QNN = {"context_len": 64, "input_len": 8}
_HQQ = {**_XNNPACK, "scale_search": "hqq"}
_AFFINE = {**_XNNPACK, "scale_search": "affine"}

WEIGHTS: Mapping[str, Case] = {
    "xnnpack 8da4w": Case(backend="xnnpack", policy="8da4w", embedding="4,32", head="4,32", options=_AFFINE),
    "xnnpack 8da4w hqq": Case(backend="xnnpack", policy="8da4w", embedding="4,32", head="4,32", options=_HQQ),
    "xnnpack 8da8w": Case(backend="xnnpack", policy="8da8w", embedding="8,0", options=_XNNPACK),
    "xnnpack 8da8w hqq": Case(backend="xnnpack", policy="8da8w", embedding="8,0", options=_HQQ),
    "coreml fp16": Case(backend="coreml", policy="fp16", options=_COREML),
    "coreml c4w": Case(backend="coreml", policy="c4w", head="4,0", options=_COREML),
    "coreml b4w": Case(backend="coreml", policy="b4w", head="4,32", options=_COREML),
    "coreml emb4": Case(backend="coreml", policy="emb4", options=_COREML),
}
"""Whose quantized base is compared tensor by tensor, without lowering."""

SIMULATED: Mapping[str, Case] = {
    "qnn_sim w8a16": Case(backend="qnn_sim", policy="w8a16", layers=2, options=_QNN),
    "qnn_sim w4a16": Case(backend="qnn_sim", policy="w4a16", layers=2, options={**_QNN, "quant_updatable": "all"}),
    "qnn_sim w8a8": Case(backend="qnn_sim", policy="w8a8", layers=2, options={**_QNN, "hot_switch": True}),
}
"""Whole bundles that take no lowering."""

LOWERED: Mapping[str, Case] = {
    "xnnpack fp32": Case(backend="xnnpack", policy="fp32", options=_XNNPACK),
    "xnnpack 8da4w hqq": Case(backend="xnnpack", policy="8da4w", embedding="4,32", head="4,32", options=_HQQ),
    "xnnpack 8da8w multimethod": Case(
        backend="xnnpack", policy="8da8w", embedding="8,0", options={**_XNNPACK, "layout": "multimethod"}
    ),
    "coreml fp16": Case(backend="coreml", policy="fp16", options=_COREML),
    "coreml b4w": Case(backend="coreml", policy="b4w", head="4,32", options=_COREML),
}
"""Whole bundles: some ten to twenty seconds each."""


def bundle_digests(case: Case, root: Path) -> dict[str, str]:
    """Export `case` with all adapters in the empty directory `root`; return the SHA-256 hex of every file, by name.

    The manifest is left out: it records the versions of tools.
    """
    bundle = lora_core.export(
        write_checkpoint(root / "model", layers=case.layers),
        adapters=_references(case, root),
        backend=case.backend,
        policy=case.policy,
        embedding=case.embedding,
        head=case.head,
        out=root / "bundle",
        options=case.options,
    )
    files = sorted(path for path in bundle.path.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(bundle.path).as_posix(): _sha256(path.read_bytes()) for path in files}


def weight_digests(case: Case, root: Path) -> dict[str, str]:
    """Load and quantize the base of `case` as an export would; return the SHA-256 hex of every tensor, by name."""
    prepare, options = {"xnnpack": _xnnpack, "coreml": _coreml}[case.backend]()
    job = ExportJob(
        model=HfModelSource().open(str(write_checkpoint(root / "model", layers=case.layers))),
        adapters=(),
        plans=(),
        policy=parse_policy(case.policy, PluginHub().policies, embedding=case.embedding, head=case.head),
        options=options(**case.options),
    )
    return {name: _sha256(stored) for name, stored in _tensors(prepare(job).module.state_dict())}


def table_digests() -> dict[str, str]:
    """Return the SHA-256 hex of the rotary tables of usual configurations."""
    ropes = {
        "theta 1e4": (Rope(theta=1e4), 64),
        "theta 1e5": (Rope(theta=1e5), 64),
        "theta 1e6": (Rope(theta=1e6), 128),
        "llama3": (Rope(theta=5e5, kind="llama3", factor=32.0), 64),
        "linear": (Rope(theta=1e4, kind="linear", factor=3.0), 80),
    }
    return {
        name: _sha256(b"".join(table.tobytes() for table in rope.tables(head_dim, 4096)))
        for name, (rope, head_dim) in ropes.items()
    }


def write_checkpoint(directory: Path, *, layers: int) -> Path:
    """Write a checkpoint of exact fractions, which no processor's arithmetic has touched, and return `directory`."""
    directory.mkdir(parents=True)
    random = np.random.default_rng(0)
    hidden = CONFIG["hidden_size"]
    tensors = {"model.embed_tokens.weight": _fractions(random, CONFIG["vocab_size"], hidden, over=1)}
    for layer in range(layers):
        for name, shape in _PROJECTIONS.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = _fractions(random, *shape, over=4)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = 1 + _fractions(random, hidden, over=8)
        # A massive channel, for the simulator to split.
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"][5] *= 64
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"][:, 5] /= 64
    tensors["model.norm.weight"] = 1 + _fractions(random, hidden, over=8)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}), "utf-8")
    return directory


def write_adapter(directory: Path, name: str, *, layers: int) -> Path:
    """Write adapter `name` of `ADAPTERS` as PEFT stores it and return `directory`."""
    directory.mkdir(parents=True)
    seed, rank, alpha = ADAPTERS[name]
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for module, (outputs, inputs) in _PROJECTIONS.items():
            if module.endswith(_TARGETS):
                prefix = f"base_model.model.model.layers.{layer}.{module}"
                tensors[f"{prefix}.lora_A.weight"] = _fractions(random, rank, inputs, over=4)
                tensors[f"{prefix}.lora_B.weight"] = _fractions(random, outputs, rank, over=4)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(_TARGETS)}
    (directory / "adapter_config.json").write_text(json.dumps(fields), "utf-8")
    return directory


def _references(case: Case, root: Path) -> tuple[AdapterReference, ...]:
    texts = [f"{name}={write_adapter(root / name, name, layers=case.layers)}" for name in ADAPTERS]
    if not case.options.get("hot_switch"):  # which has no place for more
        texts += [f"half={root / 'alice'}@0.3", "mix=alice:0.7+bob:-0.4"]
    return parse_references(texts)


def _xnnpack() -> tuple[Callable[[ExportJob], Any], type]:
    from lora_core_xnnpack.lowering.base import load_base
    from lora_core_xnnpack.options import XnnpackOptions

    return lambda job: load_base(job, ignore), XnnpackOptions


def _coreml() -> tuple[Callable[[ExportJob], Any], type]:
    from lora_core_coreml.lowering.base import prepare
    from lora_core_coreml.options import CoremlOptions

    return prepare, CoremlOptions


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield the bytes of every tensor; a quantized one is several."""
    for name, tensor in state.items():
        parts = getattr(tensor, "tensor_data_names", None)
        for part in parts or [None]:
            plain = getattr(tensor, part) if part else tensor
            yield f"{name}.{part}" if part else name, plain.detach().contiguous().numpy().tobytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _fractions(random: np.random.Generator, *shape: int, over: int) -> npt.NDArray[np.float32]:
    """Return sums of four uniform fractions below 1 / `over` (a power of two): bell-shaped, and exact in float32.

    They have 22 bits, so that sums of them are not exact in float32: an order of summation shows.
    """
    integers = random.integers(1 - (1 << 20), 1 << 20, (4, *shape)).sum(axis=0)
    return integers.astype(np.float32) / np.float32(over << 20)
