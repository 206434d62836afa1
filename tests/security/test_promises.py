"""What SECURITY.md promises of files that strangers wrote."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint

# Every command of the library on one model, with transformers and peft as the reference, in a process of its own.
ROUND = """
import socket, sys
import lora_core

def refuse(*arguments):
    raise AssertionError(f"a connection to {arguments[1:]}")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *arguments, **others: refuse(None, *arguments)
adapters = {"a": "a", "b": "b"}
options = {"context_len": 32, "input_len": 8}
lora_core.export("model", adapters={"a": "a"}, backend="qnn_sim", options=options, out="bundle")
lora_core.add("bundle", {"b": "b"})
lora_core.inspect("bundle")
report = lora_core.verify("bundle", "model", adapters=adapters, tokens=2, reference="transformers")
print(report.reference)
"""


class Attack:
    """An object that makes the file `opened` when its pickle is opened."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Have `open` called by the reader."""
        return os.mkdir, ("opened",)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A model and two adapters in safetensors, with pickles beside them wherever other readers look for weights."""
    write_tiny_checkpoint(tmp_path / "model")
    write_tiny_adapter(tmp_path / "a", seed=1)
    write_tiny_adapter(tmp_path / "b", seed=2)
    for name in ("model/pytorch_model.bin", "a/adapter_model.bin", "b/adapter_model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Attack()))
    return tmp_path


def test_no_pickle_is_opened_and_no_connection_made(hostile: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", ROUND], cwd=hostile, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "transformers" in ran.stdout
    assert not (hostile / "opened").exists()


def test_the_attack_works_where_pickles_are_opened(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile)
    pickle.loads((hostile / "a/adapter_model.bin").read_bytes())
    assert (hostile / "opened").exists()
