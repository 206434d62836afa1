"""What SECURITY.md promises of files that strangers wrote."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
from functools import cache
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
with lora_core.open("bundle") as session:
    session.step("b", [5, 9, 2], 0)
report = lora_core.verify("bundle", "model", adapters=adapters, tokens=2, reference="transformers")
print(report.reference)
"""


ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in (ROOT / "lora_core", *(ROOT / "plugins").iterdir())
    for path in folder.rglob("*.py")
    if "tests" not in path.relative_to(ROOT).parts
)
# Processes of our own talk to each other in pickles, through pipes.
PICKLES = {"lora_core/processes/local.py", "lora_core/processes/local_worker.py", "lora_core/testing/probe.py"}
RUNS_CODE = {"eval", "exec", "compile", "__import__", "execfile"}
OPENS_PICKLES = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "joblib.load", "marshal.loads", "shelve.open"),
    *("dill.load", "dill.loads"),
}
# Besides the reader that counts what it reads: files and texts that programs of ours or libraries wrote a moment ago,
# caches of the user's own, and what was read within limits before.
OPENS_JSON = {
    *("lora_core/intake/plain_json.py", "lora_core/intake/patterns.py", "lora_core/template_cache/storage.py"),
    *("lora_core/models/text/calling.py", "lora_core/models/text/comparing.py", "lora_core/models/text/tokenizer.py"),
    *("plugins/coreml/lora_core_coreml/storage/flatc.py", "plugins/coreml/lora_core_coreml/stamping/document.py"),
    *("plugins/coreml/lora_core_coreml/stamping/items.py", "plugins/qnn_sim/lora_core_qnn_sim/vendor/dialog.py"),
    *(f"plugins/qnn_sim/lora_core_qnn_sim/vendor/{each}.py" for each in ("genie", "genie_process", "provider_process")),
    "plugins/xnnpack/lora_core_xnnpack/runtime/packed_cache.py",
}
OPENS_TAGS = {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"}
TEMPLATES = {"jinja2.Environment", "jinja2.Template", "Environment", "Template"}


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


@cache
def calls(path: Path) -> set[str]:
    """Return what a module calls, by the name that it is called by."""
    called = (node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    return {ast.unparse(each) for each in called if isinstance(each, ast.Name | ast.Attribute)}


def callers(names: set[str]) -> set[str]:
    """Return the modules that ship and call one of `names`."""
    return {str(path.relative_to(ROOT)) for path in SOURCES if calls(path) & names}


def test_nothing_that_ships_makes_code_of_text() -> None:
    assert callers(RUNS_CODE) == set()


def test_pickles_are_opened_between_processes_of_our_own_alone() -> None:
    assert callers(OPENS_PICKLES) == PICKLES
    assert [path for path in SOURCES if "allow_pickle" in path.read_text("utf-8")] == []  # numpy's default is not to


def test_yaml_is_opened_by_the_safe_loader_alone() -> None:
    assert callers(OPENS_TAGS) == set()


def test_json_of_strangers_is_read_within_limits_alone() -> None:
    assert callers({"json.loads", "json.load"}) == OPENS_JSON


def test_templates_of_strangers_are_rendered_in_the_sandbox_alone() -> None:
    assert callers(TEMPLATES) == {"lora_core/html/page.py"}  # whose templates ship with it


def test_no_pickle_is_opened_and_no_connection_made(hostile: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", ROUND], cwd=hostile, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "transformers" in ran.stdout
    assert not (hostile / "opened").exists()


def test_the_attack_works_where_pickles_are_opened(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile)
    pickle.loads((hostile / "a/adapter_model.bin").read_bytes())
    assert (hostile / "opened").exists()
