"""Flatbuffers of ExecuTorch as plain data, read and written by the `flatc` that it ships: nothing is imported of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_core.errors import BundleError, UnsupportedError
from lora_core.intake.parsing import parsing
from lora_core.temporary import temporary_directory

PROGRAM = Path("exir", "_serialize", "program.fbs")
FLAT_TENSOR = Path("extension", "flat_tensor", "serialize", "flat_tensor.fbs")
"""Schemas, by their paths in the package."""

_PATIENCE = 600.0
"""Seconds for flatc; honest programs take a few."""


def decode(schema: Path, data: bytes, *, where: str) -> dict[str, Any]:
    """Return the flatbuffer `data` of `schema` as plain data; raises `BundleError`."""
    with temporary_directory() as folder:
        (folder / "stored.bin").write_bytes(data)
        options = ("--json", "--raw-binary", "--strict-json", "--defaults-json", "-o", str(folder))
        run(*options, str(_root() / schema), "--", str(folder / "stored.bin"), where=where)
        with parsing(where, "The file"):
            return json.loads((folder / "stored.json").read_bytes())  # type: ignore[no-any-return]


def encode(schema: Path, content: Mapping[str, Any]) -> bytes:
    """Return `content` as a flatbuffer of `schema`, without a header inside."""
    with temporary_directory() as folder:
        (folder / "content.json").write_text(json.dumps(content))
        run("--binary", "-o", str(folder), str(_root() / schema), str(folder / "content.json"), where=schema.stem)
        (made,) = (path for path in folder.iterdir() if path.suffix != ".json")
        return made.read_bytes()


def run(*arguments: str, where: str) -> None:
    """Run flatc; raises `BundleError` with what it says if it fails."""
    command = [str(_root() / "data" / "bin" / "flatc"), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"The file is not read or written within {_PATIENCE:.0f} s", where=where) from error
    if done.returncode:
        raise BundleError(f"The file cannot be read or written: {(done.stdout + done.stderr).strip()}", where=where)


def _root() -> Path:
    found = importlib.util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        raise UnsupportedError("executorch is not installed", remedy="Install lora-core-coreml with its dependencies.")
    return Path(next(iter(found.submodule_search_locations)))
