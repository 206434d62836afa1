"""First exports of models of given shapes with random bfloat16 weights: CPU seconds and peak memory of the process.

    python benchmarks/first_export.py [SHAPE ...] [--policy 8da4w] [--embedding 8,0] [--layout split] [--answer]

Shapes: smollm2-135m, qwen3-0.6b, llama-3.2-1b, llama-3.2-3b, llama-3.1-8b (16 GB on disk, and what is exported). The
checkpoint and a rank-16 adapter on all linear layers are written once, a block at a time. Each shape is exported in a
process of its own, with an empty template cache and then from it; `--answer` also opens the bundle and lets base and
adapter read a prompt and write some tokens. Prints a Markdown table and writes results.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import numpy as np
from safetensors.numpy import save_file

RANK = 16
CONTEXT, CALL = 512, 512
PROMPT, ANSWER = 16, 4
_BLOCK = 1 << 22  # values that are drawn at a time
_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _shape(
    dim: int, inner: int, layers: int, heads: int, key_value: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        **_LLAMA,
        "hidden_size": dim,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


_LLAMA3 = {"rope_theta": 500_000.0, "rope_scaling": _LLAMA3_ROPE, "max_position_embeddings": 131_072}
_QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6, "head_dim": 128}
SHAPES = {
    "smollm2-135m": _shape(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True, rope_theta=100_000.0),
    "qwen3-0.6b": _shape(1024, 3072, 28, 16, 8, 151936, tie_word_embeddings=True, rope_theta=1e6, **_QWEN3),
    "llama-3.2-1b": _shape(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True, head_dim=64, **_LLAMA3),
    "llama-3.2-3b": _shape(3072, 8192, 28, 24, 8, 128256, tie_word_embeddings=True, head_dim=128, **_LLAMA3),
    "llama-3.1-8b": _shape(4096, 14336, 32, 32, 8, 128256, tie_word_embeddings=False, head_dim=128, **_LLAMA3),
}


@attrs.frozen(kw_only=True)
class Row:
    """What one process took: CPU seconds, and the most that was resident, in bytes."""

    shape: str
    way: str
    cpu_seconds: float
    peak: int
    foundation: int


def linears(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name and shape (out, in) of every linear layer of the blocks."""
    dim, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or dim // config["num_attention_heads"]
    query, key = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        for name, shape in (
            ("self_attn.q_proj", (query, dim)),
            ("self_attn.k_proj", (key, dim)),
            ("self_attn.v_proj", (key, dim)),
            ("self_attn.o_proj", (dim, query)),
            ("mlp.gate_proj", (inner, dim)),
            ("mlp.up_proj", (inner, dim)),
            ("mlp.down_proj", (dim, inner)),
        ):
            yield f"model.layers.{layer}.{name}", shape


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor of the checkpoint."""
    dim = config["hidden_size"]
    yield "model.embed_tokens.weight", (config["vocab_size"], dim)
    for name, shape in linears(config):
        yield f"{name}.weight", shape
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (dim,)
        yield f"{block}.post_attention_layernorm.weight", (dim,)
        if config["model_type"] == "qwen3":
            yield f"{block}.self_attn.q_norm.weight", (config["head_dim"],)
            yield f"{block}.self_attn.k_norm.weight", (config["head_dim"],)
    yield "model.norm.weight", (dim,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], dim)


def write_model(directory: Path, config: dict[str, Any]) -> Path:
    """Write a Hugging Face directory with random bfloat16 weights, unless it is there; return it."""
    if (directory / "config.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, shape in tensors(config):
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    if shutil.disk_usage(directory).free < 2 * end:
        raise SystemExit(f"{directory}: {end / 1e9:.1f} GB of weights and as much for bundles do not fit.")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in tensors(config):
            _write_random(file, generator, shape)
    # Last: its presence says that the directory is whole.
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


def _write_random(file: BinaryIO, generator: np.random.Generator, shape: Sequence[int]) -> None:
    """Write one tensor: weights uniform in -0.035 to 0.035, norms around 1."""
    left, middle = int(np.prod(shape)), 1.0 if len(shape) == 1 else 0.0
    while left:
        count = min(left, _BLOCK)
        values = (generator.random(count, dtype=np.float32) - np.float32(0.5)) * np.float32(0.07) + np.float32(middle)
        file.write((values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes())
        left -= count


def write_adapter(directory: Path, config: dict[str, Any]) -> Path:
    """Write a PEFT directory with a rank-16 LoRA on all linear layers, unless it is there; return it."""
    if (directory / "adapter_config.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    matrices = {}
    for name, (out_features, in_features) in linears(config):
        for part, shape in (("A", (RANK, in_features)), ("B", (out_features, RANK))):
            values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            matrices[f"base_model.model.{name}.lora_{part}.weight"] = values
    save_file(matrices, directory / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name, _ in linears(config)})
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(fields), "utf-8")
    return directory


def measure(words: Sequence[str]) -> None:
    """Run `lora-core` in this process, then say what it took."""
    from lora_core.cli.main import main

    code = main(list(words))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss: a child starts with that of the process that it was forked from.
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"code": int(code), "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak": peak}))


def exported(name: str, way: str, bundle: Path, words: Sequence[object]) -> Row:
    """Export in a process of its own."""
    shutil.rmtree(bundle, ignore_errors=True)
    command = [
        sys.executable,
        __file__,
        "--measure",
        "export",
        "--backend",
        "xnnpack",
        *map(str, words),
        "-o",
        str(bundle),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    told = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {"code": done.returncode}
    if told["code"]:
        raise SystemExit(f"{' '.join(command)} failed with {told['code']}")
    return Row(
        shape=name,
        way=way,
        cpu_seconds=told["cpu_seconds"],
        peak=told["peak"],
        foundation=(bundle / "foundation.ptd").stat().st_size,
    )


def answer(bundle: Path) -> None:
    """Let base and adapter of a bundle read a prompt and write some tokens; raises `RuntimeError` if they cannot."""
    import lora_core

    prompt = [int(token) for token in np.random.default_rng(2).integers(3, 200, PROMPT)]
    with lora_core.open(bundle) as session:
        for adapter in (None, "some"):
            session.load(adapter)
            tokens = list(prompt)
            logits = session.step(adapter, tokens, 0)
            for _ in range(ANSWER):
                if not np.isfinite(logits).all():
                    raise RuntimeError(f"{bundle} gives no numbers with adapter {adapter}")
                tokens.append(int(np.argmax(logits)))
                logits = session.step(adapter, tokens[-1:], len(tokens) - 1)
            print(f"{adapter or 'base'} answers {tokens[PROMPT:]}", flush=True)


def rows(name: str, work: Path, chosen: argparse.Namespace) -> Iterator[Row]:
    """Export one shape without the cache and from it."""
    config = SHAPES[name]
    model, adapter = write_model(work / name / "model", config), write_adapter(work / name / "adapter", config)
    words: list[object] = ["--model", model, "--adapter", f"some={adapter}", "--layout", chosen.layout]
    words += ["--policy", chosen.policy, "--max-context-len", CONTEXT, "--max-seq-len", CALL]
    words += ["--embedding", chosen.embedding] if chosen.embedding else []
    bundle, cache = work / name / "bundle", work / name / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    yield exported(name, "first", bundle, [*words, "--cache", cache])
    if chosen.answer:
        answer(bundle)
    yield exported(name, "from the cache", bundle, [*words, "--cache", cache])


def table(found: Sequence[Row]) -> str:
    lines = ["| shape | export | CPU seconds | peak memory | foundation |", "|---|---|---|---|---|"]
    for row in found:
        cells = (
            row.shape,
            row.way,
            f"{row.cpu_seconds:.0f}",
            f"{row.peak / 1e9:.2f} GB",
            f"{row.foundation / 1e9:.2f} GB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    if "--measure" in sys.argv:
        measure(sys.argv[sys.argv.index("--measure") + 1 :])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", choices=[*SHAPES, []], default=["smollm2-135m"])
    parser.add_argument("--policy", default="8da4w")
    parser.add_argument("--embedding")
    parser.add_argument("--layout", default="split", choices=("split", "multimethod"))
    parser.add_argument("--answer", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/first_export"))
    chosen = parser.parse_args()
    found: list[Row] = []
    for name in chosen.shapes:
        for row in rows(name, chosen.output.resolve(), chosen):
            found.append(row)
            print(table([row]), flush=True)
    print(table(found))
    results = chosen.output / f"results-{chosen.policy}-{chosen.embedding or 'float'}-{chosen.layout}.json"
    results.write_text(json.dumps([attrs.asdict(row) for row in found], indent=1), "utf-8")


if __name__ == "__main__":
    main()
