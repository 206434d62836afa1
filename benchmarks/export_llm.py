"""ExecuTorch's own LLM exporter on a Hugging Face checkpoint: the peer that benchmarks and tests measure against."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import measured

MODULE = "executorch.extension.llm.export.export_llm"
META_NAMES: Mapping[str, str] = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


@attrs.frozen(kw_only=True)
class PeerExport:
    """One run of `export_llm`: what it cost, and where its files lie."""

    cost: measured.Cost
    directory: Path


def prepare(model: Path, directory: Path) -> Path:
    """Write the Meta-layout checkpoint and parameters that `export_llm` takes; return the directory.

    In a process of its own: a child's peak memory counts that of the process it was forked from.
    """
    subprocess.run([sys.executable, __file__, str(model), str(directory)], check=True)
    return directory


def convert(model: Path, directory: Path) -> None:
    """Convert the checkpoint at `model`."""
    import torch
    from safetensors.torch import load_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = {_meta_name(name): tensor for name, tensor in load_file(model / "model.safetensors").items()}
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    torch.save(weights, directory / "model.pth")
    config = json.loads((model / "config.json").read_text("utf-8"))
    rope = config.get("rope_parameters") or {}
    parameters = {
        "dim": config["hidden_size"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "n_layers": config["num_hidden_layers"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": rope.get("rope_theta", config.get("rope_theta")),
        "vocab_size": config["vocab_size"],
        "use_hf_rope": True,
        "use_scaled_rope": False,
    }
    (directory / "params.json").write_text(json.dumps(parameters), "utf-8")


def run(
    prepared: Path,
    out: Path,
    *,
    adapter: Path | None,
    context: int,
    log: Path,
    program: Sequence[str | Path] = ("-m", MODULE),
) -> PeerExport:
    """Export the base, or the base with `adapter`, in a process of its own; raises if it fails.

    `program` is what Python runs: the exporter, or what runs it.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = out / "config.yaml"
    config.write_text(_config(prepared, out, adapter, context), "utf-8")
    cost = measured.run(sys.executable, *program, "--config", config, log=log, cwd=out)
    return PeerExport(cost=cost, directory=out)


def _config(prepared: Path, out: Path, adapter: Path | None, context: int) -> str:
    lines = [
        "base:",
        "  model_class: smollm2",
        f"  checkpoint: {prepared / 'model.pth'}",
        f"  params: {prepared / 'params.json'}",
    ]
    if adapter is not None:
        lines += [
            "  lora_config:",
            f"    adapter_checkpoint: {adapter / 'adapter_model.safetensors'}",
            f"    adapter_config: {adapter / 'adapter_config.json'}",
        ]
    lines += ["model:", "  use_kv_cache: true", "  use_sdpa_with_kv_cache: true", "  enable_dynamic_shape: true"]
    lines += ["export:", f"  max_context_length: {context}", f"  max_seq_length: {context}", f"  output_dir: {out}"]
    lines += ["  output_name: program.pte", "  foundation_weights_file: foundation"]
    if adapter is not None:
        lines.append("  lora_weights_file: lora")
    lines += ["backend:", "  xnnpack:", "    enabled: true", "    extended_ops: true"]
    return "\n".join(lines) + "\n"


def _meta_name(name: str) -> str:
    if name in META_NAMES:
        return META_NAMES[name]
    name = name.removeprefix("model.")
    for theirs, meta in META_NAMES.items():
        name = name.replace(f".{theirs}.", f".{meta}.")
    return name


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
