"""ONNX Runtime tells its maker nothing: what it would begin with its import does not begin."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import lora_core_onnx

SOURCES = Path(lora_core_onnx.__file__).parent


def test_importing_it_starts_no_telemetry(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    script = "from lora_core_onnx.library import onnxruntime; print(onnxruntime().__version__)"
    words = [sys.executable, "-c", script]
    ran = subprocess.run(words, env={**kept, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_it_is_imported_in_one_place() -> None:
    importers = set()
    for path in SOURCES.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        # Names of its inside are imported once the library is there.
        names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        importers |= {path.name for name in names if name == "onnxruntime"}
    assert importers == {"library.py"}
