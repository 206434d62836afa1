"""Command lines that cannot be understood: exit code 2, every problem at once, nothing written."""

from __future__ import annotations

import pytest

from tests.cli.shell import Shell

EXPORT = ("export", "--backend", "xnnpack", "--model", "model", "-o", "out")

REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown command": (("exprot",), ("no command 'exprot'", "Did you mean 'export'?", "Choices: export, add")),
    "unknown options": (
        (*EXPORT, "--polcy", "fp32", "--frobnicate"),
        ("2 problems", "'--polcy'", "--policy", "'--frobnicate'"),
    ),
    "nothing given": (("export",), ("3 problems", "'--backend'", "'--model'", "'--output'")),
    "unknown backend": (
        ("export", "--backend", "xnpack", "--model", "model", "-o", "out"),
        ("no backend 'xnpack'", "Did you mean 'xnnpack'?", "Choices: "),
    ),
    "option of another backend": (
        (*EXPORT, "--dtype", "float16"),
        ("--dtype is an option of backend", "'plain'", "'xnnpack' does not have"),
    ),
    "option of a backend, no backend": (
        ("export", "--model", "model", "-o", "out", "--adapter-data", "embedded"),
        ("--adapter-data is an option of backend 'xnnpack'", "--backend xnnpack"),
    ),
    "several bad values": (
        (*EXPORT, "--max-context-len", "many", "--max-rank", "0", "--adapter-data", "inside"),
        ("3 problems", "'many' is not a valid integer", "--max-rank", "'external', 'embedded'"),
    ),
    "value that the backend refuses": ((*EXPORT, "--max-seq-len", "0"), ("refuses max_seq_len", ">= 2")),
    "option without its value": ((*EXPORT, "--policy"), ("'--policy' requires an argument",)),
    "stray argument": ((*EXPORT, "surplus"), ("Unexpected arguments: surplus",)),
    "unknown plan": ((*EXPORT, "--plan", "onion"), ("'onion' is not one of 'union', 'per-shape'",)),
    "unknown targets": ((*EXPORT, "--max-rank", "4", "--targets", "qkv_proj"), ("'qkv_proj'", "q_proj")),
    "output is a file": (
        ("export", "--backend", "plain", "--model", "model", "-o", "model/config.json"),
        ("is a file",),
    ),
    "adapter without a directory": ((*EXPORT, "--adapter", "alice"), ("'alice' is not an adapter", "NAME=DIR")),
    "reserved name": ((*EXPORT, "--adapter", "forward=adapters/alice"), ("'forward' is reserved",)),
    "impossible name": ((*EXPORT, "--adapter", "a b=adapters/alice"), ("'a b' cannot be an adapter's name",)),
    "name given twice": (
        (*EXPORT, "--adapter", "a=adapters/alice", "--adapter", "A=adapters/bob"),
        ("'A' is given twice",),
    ),
    "weights without configuration": (
        (*EXPORT, "--adapter", "a=adapters/alice/adapter_model.safetensors"),
        ("both or neither",),
    ),
    "two of three files": (
        (*EXPORT, "--adapter-files", "a", "adapters/alice/adapter_model.safetensors"),
        ("'--adapter-files' requires 3 arguments",),
    ),
    "composite of strangers": ((*EXPORT, "--adapter", "mix=alice:0.5+bob:0.5"), ("'alice'", "'bob'", "2 problems")),
    "several bad adapters": (
        (*EXPORT, "--adapter", "alice", "--adapter", "base=x", "--adapter", "1=y"),
        ("3 problems",),
    ),
    "nothing to add": (("add", "bundle"), ("nothing to add", "--from-dir")),
    "no such directory of adapters": (("add", "bundle", "--from-dir", "none"), ("no directory 'none'",)),
    "directory without adapters": (("add", "bundle", "--from-dir", "adapters/alice"), ("holds no adapters",)),
    "name in use": (("add", "bundle", "--adapter", "alice=adapters/bob"), ("'alice' is already in the bundle",)),
    "no jobs": (("add", "bundle", "--adapter", "bob=adapters/bob", "--jobs", "0"), ("--jobs",)),
    "remove a stranger": (("remove", "bundle", "alise"), ("'alise'", "Did you mean 'alice'?")),
    "remove nothing": (("remove", "bundle"), ("NAMES",)),
    "run without a prompt": (("run", "bundle"), ("--prompt",)),
    "negative temperature": (("run", "bundle", "--prompt", "x", "--temperature", "-1"), ("--temperature",)),
    "session option of another backend": (
        ("run", "bundle", "--prompt", "x", "--weight-cache", "on"),
        ("--weight-cache is an option of backend 'xnnpack', which 'plain' does not have",),
    ),
    "verify against nothing": (("verify", "bundle"), ("'--model'",)),
    "verify with a stranger": (
        ("verify", "bundle", "--model", "model", "--adapter", "alise=adapters/alice"),
        ("no adapter 'alise'", "Did you mean 'alice'?"),
    ),
    "no rounds": (("bench", "bundle", "--rounds", "0"), ("--rounds",)),
    "conformance of a stranger": (("conform", "plian"), ("no backend 'plian'", "Did you mean 'plain'?")),
    "unknown check": (("conform", "plain", "--check", "fact"), ("no check 'fact'", "Did you mean 'facts'?")),
    "unknown option of a report": (("backends", "--jsn"), ("'--jsn'", "--json")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_usage_is_refused_clearly(case: str, shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    words, fragments = REFUSED[case]
    shell.run_here(words, capfd).expect_refusal(2, *fragments)


def test_without_a_command_the_help_is_shown(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = shell.run_here((), capfd)
    assert outcome.code == 2
    assert "Commands:" in outcome.err
