"""Files that are wrong: the documented exit code, file and tensor named, the output directory untouched."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.shell import Shell

EXPORT = ("export", "--backend", "xnnpack", "--model", "model", "-o", "out", "--adapter", "alice=adapters/alice")
ADD = ("add", "bundle", "--adapter", "bob=adapters/bob")
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def edit(file: Path, fields: Mapping[str, Any]) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **fields}), encoding="utf-8")


def config(**fields: Any) -> Callable[[Path], None]:
    return lambda root: edit(root / "adapters/alice/adapter_config.json", fields)


def model_config(**fields: Any) -> Callable[[Path], None]:
    return lambda root: edit(root / "model/config.json", fields)


def manifest(**fields: Any) -> Callable[[Path], None]:
    return lambda root: edit(root / "bundle/manifest.json", fields)


def tensors(
    change: Callable[[dict[str, Any]], object], file: str = "adapters/alice/adapter_model"
) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / f"{file}.safetensors"
        loaded = load_file(path)
        change(loaded)
        save_file(loaded, path, metadata={"format": "pt"})

    return apply


def write(file: str, data: bytes) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_bytes(data)

    return apply


def cut(file: str, length: int) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / file).write_bytes((root / file).read_bytes()[:length])

    return apply


def flip(file: str) -> Callable[[Path], None]:
    """Flip the last bit."""

    def apply(root: Path) -> None:
        data = (root / file).read_bytes()
        (root / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    return apply


ADAPTERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "broken configuration": (write("adapters/alice/adapter_config.json", b"{"), ("adapter_config.json",)),
    "no configuration": (lambda root: (root / "adapters/alice/adapter_config.json").unlink(), ("adapter_config.json",)),
    "missing field": (
        write("adapters/alice/adapter_config.json", b'{"peft_type": "LORA"}'),
        ("adapter_config.json", "target_modules"),
    ),
    "DoRA without magnitudes": (config(use_dora=True), ("magnitude", "alice")),
    "another method": (config(peft_type="IA3"), ("IA3",)),
    "modules_to_save": (config(modules_to_save=["lm_head"]), ("modules_to_save",)),
    "targets that the base lacks": (config(target_modules=["qkv_proj"]), ("qkv_proj", "q_proj")),
    "another rank than the tensors": (config(r=8), ("rank", "q_proj")),
    "tensor that nothing uses": (
        tensors(lambda each: each.update({f"{Q}.lora_E.weight": np.ones((4, 4), np.float32)})),
        ("lora_E", "adapter_model.safetensors"),
    ),
    "half a pair": (tensors(lambda each: each.pop(f"{Q}.lora_B.weight")), ("layers.0.self_attn.q_proj", "half a pair")),
    "wrong shape": (
        tensors(lambda each: each.update({f"{Q}.lora_A.weight": np.ones((4, 63), np.float32)})),
        ("q_proj", "63"),
    ),
    "not a number": (
        tensors(lambda each: each[f"{Q}.lora_A.weight"].__setitem__((0, 0), np.nan)),
        ("NaN", f"{Q}.lora_A.weight"),
    ),
    "truncated weights": (cut("adapters/alice/adapter_model.safetensors", 100), ("adapter_model.safetensors",)),
    "empty weights": (cut("adapters/alice/adapter_model.safetensors", 0), ("adapter_model.safetensors",)),
}

MODELS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "unsupported architecture": (
        model_config(model_type="unheard", architectures=["UnheardForCausalLM"]),
        ("unheard", "LlamaForCausalLM", "Qwen3ForCausalLM"),
    ),
    "broken configuration": (write("model/config.json", b"not json"), ("config.json",)),
    "missing tensor": (
        tensors(lambda each: each.pop("model.layers.1.mlp.up_proj.weight"), "model/model"),
        ("model.layers.1.mlp.up_proj.weight",),
    ),
    "tensor of another shape": (model_config(hidden_size=32), ("shape",)),
    "truncated weights": (cut("model/model.safetensors", 1000), ("model.safetensors",)),
    "no weights": (lambda root: (root / "model/model.safetensors").unlink(), ("safetensors",)),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_bad_adapter_is_refused_before_lowering(case: str, shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, fragments = ADAPTERS[case]
    spoil(shell.directory)
    shell.run_here(EXPORT, capfd).expect_refusal(3, "'alice'", *fragments)


@pytest.mark.parametrize("case", MODELS)
def test_bad_model_is_refused_before_lowering(case: str, shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, fragments = MODELS[case]
    spoil(shell.directory)
    shell.run_here(EXPORT, capfd).expect_refusal(3, *fragments)


WORDS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "no such adapter": ((*EXPORT, "--adapter", "bob=adapters/bop"), 3, ("'adapters/bop'", "neither a directory")),
    "directory that holds none": ((*EXPORT, "--adapter", "bob=adapters"), 3, ("'bob'", "holds no adapter")),
    "no such model": (("export", "--backend", "xnnpack", "--model", "./modle", "-o", "out"), 3, ("modle",)),
    "adapter as the model": (
        ("export", "--backend", "xnnpack", "--model", "adapters/alice", "-o", "out"),
        3,
        ("adapters/alice",),
    ),
    "hub id that is not cached": (
        ("export", "--backend", "xnnpack", "--model", "nobody/nothing", "-o", "out"),
        3,
        ("nobody/nothing", "--download"),
    ),
    "unknown policy": ((*EXPORT, "--policy", "8da5w"), 4, ("'8da5w'", "Did you mean '8da", "fp32")),
    "policy of another backend": ((*EXPORT, "--policy", "c4w"), 4, ("'xnnpack' cannot do policy 'c4w'", "8da4w")),
    "group size for nothing": ((*EXPORT, "--group-size", "32"), 4, ("group size",)),
    "five-bit embedding": ((*EXPORT, "--policy", "8da4w", "--embedding", "5,0"), 4, ("5",)),
    "sequence longer than the context": (
        (*EXPORT, "--max-context-len", "16", "--max-seq-len", "32"),
        4,
        ("--max-seq-len 32 is more than a context of 16",),
    ),
    "output exists": (("export", "--backend", "plain", "--model", "model", "-o", "bundle"), 3, ("bundle", "--force")),
    "output is not a bundle": (
        ("export", "--backend", "plain", "--model", "model", "-o", "adapters", "--force"),
        3,
        ("adapters",),
    ),
    "output below a file": (
        ("export", "--backend", "plain", "--model", "model", "-o", "model/config.json/out"),
        7,
        ("config.json",),
    ),
    "log below a file": (("inspect", "bundle", "--log-file", "model/config.json/log"), 7, ("model/config.json/log",)),
    "add to no bundle": (("add", "model", "--adapter", "bob=adapters/bob"), 3, ("model",)),
    "add to nothing": (("add", "bundel", "--adapter", "bob=adapters/bob"), 3, ("bundel",)),
    "inspect nothing": (("inspect", "bundel"), 3, ("bundel",)),
    "run what cannot run": (("run", "bundle", "--prompt", "x"), 4, ("'plain' cannot run",)),
}


@pytest.mark.parametrize("case", WORDS)
def test_bad_input_is_refused_with_its_exit_code(case: str, shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    words, code, fragments = WORDS[case]
    shell.run_here(words, capfd).expect_refusal(code, *fragments)


BUNDLES: dict[str, tuple[Callable[[Path], None], int, tuple[str, ...]]] = {
    "newer schema": (manifest(schema_version=99), 3, ("99",)),
    "broken manifest": (write("bundle/manifest.json", b"{"), 3, ("manifest.json",)),
    "backend that is not installed": (
        manifest(backend="plan"),
        6,
        ("made by backend 'plan', which no installed plugin offers",),
    ),
    "foreign foundation": (
        flip("bundle/foundation.safetensors"),
        3,
        ("is not the foundation", "foundation.safetensors"),
    ),
}


@pytest.mark.parametrize("case", BUNDLES)
def test_bad_bundle_is_refused_and_stays_as_it_is(case: str, shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, code, fragments = BUNDLES[case]
    spoil(shell.directory)
    shell.run_here(ADD, capfd).expect_refusal(code, *fragments)


def test_inspect_finds_a_flipped_bit(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    flip("bundle/alice.safetensors")(shell.directory)
    outcome = shell.run_here(("inspect", "bundle"), capfd)
    assert outcome.code == 5
    assert "alice.safetensors" in outcome.out.partition("Problems:")[2]


def test_everything_wrong_is_reported_together(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    config(use_dora=True)(shell.directory)
    tensors(lambda each: each.pop(f"{Q}.lora_B.weight"), "adapters/bob/adapter_model")(shell.directory)
    outcome = shell.run_here(
        (*EXPORT, "--adapter", "bob=adapters/bob", "--policy", "8da5w", "--max-seq-len", "0"), capfd
    )
    outcome.expect_refusal(4, "'8da5w'", "max_seq_len", "magnitude", "'bob'", "half a pair", "4 problems:")


def test_a_backend_without_plans_packs_no_adapter_of_its_own(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("pack", "bundle", "alice", "-o", "alice.lora")
    shell.run_here(words, capfd).expect_refusal(4, "does not give the matrices of adapter 'alice' back", "alice=DIR")
