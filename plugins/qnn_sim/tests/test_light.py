"""The simulator needs numpy and nothing heavy: neither torch nor any runtime's definition of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_core.testing.tiny import TINY_LLAMA, write_tiny_adapter, write_tiny_checkpoint

HEAVY = ("torch", "executorch", "transformers", "peft")
SCRIPT = """
import json, sys
from pathlib import Path
import lora_core

work, group = Path(sys.argv[1]), json.loads(sys.argv[2])
lora_core.export(
    work / "model",
    adapters={name: work / name for name in ("alice", "bob")},
    backend="qnn_sim",
    policy="w8a16",
    out=work / "bundle",
    options={"context_len": 16, "input_len": 4, "group": group},
)
lora_core.add(work / "bundle", adapters={"carol": work / "carol"})
with lora_core.open(work / "bundle") as session:
    for name in (None, "alice", "bob", "carol"):
        session.step(name, [1, 2, 3], 0)
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


@pytest.mark.parametrize("group", [[], ["auto"]])
def test_export_add_and_run_import_nothing_heavy(tmp_path: Path, group: list[str]) -> None:
    write_tiny_checkpoint(tmp_path / "model", config=dict(TINY_LLAMA) | {"tie_word_embeddings": False})
    for seed, name in enumerate(("alice", "bob", "carol")):
        write_tiny_adapter(tmp_path / name, seed=seed)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(group)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout.splitlines()[-1])
    assert "lora_core_qnn_sim" in imported
    assert not set(HEAVY) & set(imported)
