"""The golden digests of `golden.json`: how they are measured, and how they are made anew.

`python -m tests.processors.golden` measures everything twice, in a process as this processor is and in one that is
made to look as old as it can, and prints what differs from the file. With `--write` it writes the file, but only if
both agree and the tools are the pinned ones: a digest of one processor's bytes is no golden digest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tests.processors import cases

Digests = dict[str, dict[str, str]]
FILE = Path(__file__).with_name("golden.json")
ROOT = Path(__file__).parents[2]
TOOLS = ("torch", "executorch", "torchao", "coremltools", "numpy")
OLDEST: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX",
}
"""Settings that hide AVX, AVX2 and FMA from torch, MKL, OpenBLAS, numpy, oneDNN and the C library (x86-64)."""


def measured() -> Digests:
    """Return the digests of every case by its key in the file."""
    found: Digests = {"rotary tables": cases.table_digests()}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        found |= {f"weights {name}": cases.weight_digests(case, root / f"w {name}") for name, case in WEIGHTS}
        found |= {f"bundle {name}": cases.bundle_digests(case, root / f"b {name}") for name, case in BUNDLES}
    return found


WEIGHTS = tuple(cases.WEIGHTS.items())
BUNDLES = (*cases.SIMULATED.items(), *cases.LOWERED.items())


def pinned() -> dict[str, str]:
    """Return the version of each of `TOOLS` that the requirement files pin."""
    text = "\n".join((ROOT / "requirements" / name).read_text("utf-8") for name in ("runtime.txt", "dev.txt"))
    return {tool: match[1] for tool in TOOLS if (match := re.search(rf"^{tool}==([\w.]+)", text, re.MULTILINE))}


def wrong_tools() -> list[str]:
    """Return what is installed in another version than pinned; local labels such as `+cpu` do not count."""
    installed = {tool: version(tool).partition("+")[0] for tool in pinned()}
    return [f"{tool} {installed[tool]}, not {wanted}" for tool, wanted in pinned().items() if installed[tool] != wanted]


def differences(one: Digests, other: Digests) -> list[str]:
    """Return the names that two sets of digests disagree on."""
    flat = [{(case, name): digest for case, each in d.items() for name, digest in each.items()} for d in (one, other)]
    return [f"{case}: {name}" for case, name in sorted(flat[0].keys() | flat[1].keys())
            if flat[0].get((case, name)) != flat[1].get((case, name))]  # fmt: skip


def _measured_in_process(settings: Mapping[str, str]) -> Digests:
    plain = {name: value for name, value in os.environ.items() if name not in OLDEST}
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "digests.json"
        command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--measure", str(out)]
        subprocess.run(command, check=True, cwd=ROOT, env={**plain, **settings})
        found: Digests = json.loads(out.read_text("utf-8"))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write golden.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        chosen.measure.write_text(json.dumps(measured()), "utf-8")
        return
    if wrong_tools():
        sys.exit(f"Golden digests are those of the pinned tools; here are {', '.join(wrong_tools())}.")
    native, oldest = _measured_in_process({}), _measured_in_process(OLDEST)
    if native != oldest:
        sys.exit("These bytes depend on the processor; nothing was written:\n" + "\n".join(differences(native, oldest)))
    changed = differences(native, json.loads(FILE.read_text("utf-8")) if FILE.exists() else {})
    print("\n".join(changed) or "Nothing differs from golden.json.")
    if chosen.write:
        FILE.write_text(json.dumps(native, indent=1, sort_keys=True) + "\n", "utf-8")
    elif changed:
        sys.exit("If a change of these bytes is wanted, add --write.")


if __name__ == "__main__":
    main()
