"""The runner of `native/examples`, built against the ExecuTorch that is installed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolchain import NATIVE, built, library_sources

LIBRARIES = ("libexecutorch.so", "libexecutorch_kernels_optimized.so", "libexecutorch_backend_xnnpack.so")


def runner(compiler: str) -> Path:
    """Build the runner with the flags of `native/examples/CMakeLists.txt`."""
    found = find_spec("executorch")
    assert found is not None
    assert found.submodule_search_locations
    root = Path(next(iter(found.submodule_search_locations)))
    include = root / "include"
    flags = (
        *("-O1", "-Wno-error", "-w", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED"),
        *("-isystem", str(include), "-isystem", str(include / "executorch/runtime/core/portable_type/c10")),
        # Backends and kernels register themselves: nothing refers to their libraries.
        *("-Wl,--no-as-needed", *(str(root / "lib" / name) for name in LIBRARIES), f"-Wl,-rpath,{root / 'lib'}"),
    )
    examples = (NATIVE / "examples" / "runner.cpp", NATIVE / "examples" / "attention_kernels.cpp")
    return built(compiler, "runner", flags, (*library_sources(), *examples))


def continuations(program: Path, foundation: Path, prompt: Sequence[int], count: int, *words: str) -> dict[str, Any]:
    """Run it; return the tokens of each program by its name."""
    command = [program, foundation, ",".join(map(str, prompt)), str(count), *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {each["name"]: each["tokens"] for each in told}
