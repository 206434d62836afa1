"""Compilers of this machine, and what they build of `native/`."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
NATIVE = ROOT / "native"
COMPILERS = ("g++", "clang++")
# Those of native/CMakeLists.txt; a test compares them.
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-ffp-contract=off")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compilers() -> list[str]:
    return [name for name in COMPILERS if shutil.which(name)]


def library_sources() -> list[Path]:
    return sorted((NATIVE / "src").glob("*.cpp"))


def built(compiler: str, name: str, flags: Sequence[str], sources: Sequence[Path]) -> Path:
    """Return what `compiler` makes of `sources`: from `build/` if it made it before.

    All are compiled as one, which takes a third of the time.
    """
    read = [*sources, *sorted((NATIVE / "src").glob("*.h")), *sorted((NATIVE / "include").glob("*.h"))]
    told = b"".join(path.read_bytes() for path in read) + repr((compiler, name, flags, WARNINGS)).encode()
    out = ROOT / "build" / "native" / hashlib.sha256(told).hexdigest()[:16] / name
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(f"{os.getpid()}-{name}")
        unity = unfinished.with_suffix(".unity.cpp")
        unity.write_text("".join(f'#include "{source}"\n' for source in sources), "utf-8")
        includes = (f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}")
        command = [compiler, "-std=c++17", *WARNINGS, *includes, *flags, str(unity), "-o", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        unity.unlink()
        unfinished.rename(out)
    return out
