"""Inputs of strangers that would hang, fill the memory or command the terminal end with exit code 3 and a reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_core.processes.starting import python_process
from tests.cli.shell import Shell
from tests.cli.test_bad_inputs import ADD, config, edit, model_config
from tests.cli.test_bad_inputs import EXPORT as SLOTTED

EXPORT = ("export", "--backend", "plain", "--model", "model", "-o", "out", "--adapter", "alice=adapters/alice")
Damage = Callable[[Path], object]


def instead(file: str, make: Callable[[Path], object]) -> Damage:
    def apply(root: Path) -> None:
        (root / file).unlink()
        make(root / file)

    return apply


HOSTILE: dict[str, tuple[Damage, str]] = {
    "pipe as configuration": (instead("adapters/alice/adapter_config.json", os.mkfifo), "a pipe"),
    "pipe as weights": (instead("adapters/alice/adapter_model.safetensors", os.mkfifo), "a pipe"),
    "pipe as model configuration": (instead("model/config.json", os.mkfifo), "a pipe"),
    "zeros as configuration": (
        instead("adapters/alice/adapter_config.json", lambda path: path.symlink_to("/dev/zero")),
        "a device",
    ),
    "zeros as weights": (
        instead("adapters/alice/adapter_model.safetensors", lambda path: path.symlink_to("/dev/zero")),
        "a device",
    ),
    "large configuration": (config(extra=["x" * 1000] * 20_000), "larger than"),
    "deep configuration": (
        lambda root: (root / "adapters/alice/adapter_config.json").write_text('{"a":' * 9999 + "1" + "}" * 9999),
        "deeper",
    ),
    "slow targets": (config(target_modules="(.+)+!"), "takes longer"),
    "slow exclusion": (config(exclude_modules="(.+)+!"), "takes longer"),
    "slow rank pattern": (config(rank_pattern={"(.+)+!": 2}), "rank_pattern"),
    "slow alpha pattern": (config(alpha_pattern={"(.+)+!": 2}), "alpha_pattern"),
    "slow layers pattern": (config(layers_pattern="(.+)+!", layers_to_transform=[0]), "layers_pattern"),
    "long rank pattern": (config(rank_pattern={f"m{n}": 2 for n in range(100_000)}), "at most 5000"),
    "a million layers": (model_config(num_hidden_layers=1_000_000_000), "num_hidden_layers"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_inputs_are_refused(
    shell: Shell, capfd: pytest.CaptureFixture[str], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_core.intake.patterns.PATIENCE", 0.5)
    damage, told = HOSTILE[case]
    damage(shell.directory)
    shell.run_here(EXPORT, capfd).expect_refusal(3, told)


def test_long_lists_of_targets_are_matched_at_once(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    config(target_modules=[f"m{number}" for number in range(200_000)])(shell.directory)
    shell.run_here(EXPORT, capfd).expect_refusal(3, "'m0'")


def test_slow_targets_on_the_command_line_are_given_up(
    shell: Shell, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_core.intake.patterns.PATIENCE", 0.5)
    words = (*SLOTTED, "--max-rank", "4", "--targets", "(.+)+!")
    shell.run_here(words, capfd).expect_refusal(2, "takes longer")


@pytest.mark.parametrize("command", [("inspect", "bundle"), ("inspect", "bundle", "--json"), ADD])
def test_nothing_that_a_stranger_wrote_commands_the_terminal(
    shell: Shell, capfd: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    manifest = shell.directory / "bundle/manifest.json"
    hidden = "\x1b]0;owned\x07\x9b31m\u202eevil"
    edit(manifest, {"policy": {"name": hidden}, "kv_cache": hidden, "versions": {hidden: hidden}})
    base = json.loads(manifest.read_text("utf-8"))["base"]
    edit(manifest, {"base": {**base, "name": hidden}})
    outcome = shell.run_here(command, capfd)
    written = outcome.out + outcome.err
    assert not set("\x1b\x07\x9b\u202e") & set(written)
    if "--json" in command:
        assert json.loads(outcome.out)["base"]["name"] == hidden


def test_a_worker_takes_no_code_from_the_folder_of_the_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("attrs.py", "numpy.py", "pickle.py"):
        (tmp_path / name).write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    with python_process("lora_core.processes.local_worker") as worker:
        worker.communicate(b"", timeout=60)
    assert not (tmp_path / "ran").exists()
