"""Run the tests marked `processors` as if on other processors: `python tests/other_processors.py [--each] [NAME ...]`.

Libraries choose their kernels by what the processor has. Each setting below makes them choose others, in a process of
its own, and one run goes beside a busy loop on every core. What a setting needs and this machine lacks is skipped by
name. `--each` sets one variable at a time: slower, and it tells which library a failure comes of. ExecuTorch's own
kernels (XNNPACK, cpuinfo) take no such orders.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[1]
FOLDERS = ("tests", "plugins/xnnpack/tests", "plugins/coreml/tests", "plugins/qnn_sim/tests", "plugins/onnx/tests")
BUSY = "beside a busy loop on every core"


@attrs.frozen(kw_only=True)
class Setting:
    """Environment variables that imitate a processor, and the flags of /proc/cpuinfo that they need."""

    name: str
    variables: dict[str, str] = attrs.field(factory=dict)
    needs: str = ""


def settings() -> list[Setting]:
    """Return every setting; that of numpy names what numpy could otherwise use here."""
    plain = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    vectors = {"ATEN_CPU_CAPABILITY": "avx2"}
    numpy_plain = {"NPY_DISABLE_CPU_FEATURES": numpy_features()}
    return [
        Setting(name="this processor"),
        Setting(
            name="plain kernels",
            variables={**plain, **numpy_plain, "MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Nehalem"},
        ),
        Setting(
            name="SSE4.2",
            variables={
                "ATEN_CPU_CAPABILITY": "default",
                "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
                "ONEDNN_MAX_CPU_ISA": "SSE41",
                "OPENBLAS_CORETYPE": "Sandybridge",
                "OMP_NUM_THREADS": "2",
            },
            needs="avx",
        ),
        Setting(
            name="Haswell",
            variables={**vectors, "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "2"},
            needs="avx2",
        ),
        Setting(
            name="Zen", variables={**vectors, "OPENBLAS_CORETYPE": "Zen", "OMP_NUM_THREADS": "1"}, needs="avx2"
        ),
        Setting(
            name="Skylake-X",
            variables={"ATEN_CPU_CAPABILITY": "avx512", "MKL_CBWR": "AVX512", "OPENBLAS_CORETYPE": "SkylakeX"},
            needs="avx512f",
        ),
        Setting(name=BUSY),
    ]  # fmt: skip


def each(given: list[Setting]) -> list[Setting]:
    """Return a setting for every variable and value in `given`, and those without any as they are."""
    single = {
        f"{name}={value}": Setting(name=f"{name}={value}", variables={name: value}, needs=setting.needs)
        for setting in given
        for name, value in setting.variables.items()
    }
    return [*(setting for setting in given if not setting.variables), *single.values()]


def numpy_features() -> str:
    """Return the features beyond its baseline that numpy was built for and this processor has."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])


def flags() -> set[str]:
    """Return what /proc/cpuinfo says that this processor has."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return set()
    return {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}


def obstacle(setting: Setting, have: set[str]) -> str:
    """Say why a setting cannot run here, or nothing."""
    if setting.variables.keys() - {"OMP_NUM_THREADS"} and platform.machine() not in ("x86_64", "AMD64"):
        return f"its variables are for x86, and this is {platform.machine()}"
    if setting.needs and setting.needs not in have:
        return f"this processor has no {setting.needs}, and its kernels would crash"
    return ""


PROBE = """
import hashlib
import numpy as np, torch
torch.manual_seed(0)
x = torch.randn(96, 96)
y = x.numpy()
told = {"torch": [x @ x, x.exp(), torch.softmax(x, -1)], "numpy": [y @ y, np.exp(y), np.exp(y.astype(float))]}
for name, values in told.items():
    print(name, hashlib.sha256(b"".join(np.asarray(value).tobytes() for value in values)).hexdigest())
"""


def probe(setting: Setting) -> set[str]:
    """Return the digests of some sums and exponentials of torch and numpy."""
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", PROBE], env=environment(setting), capture_output=True)
    return set(told.stdout.decode().splitlines())


def environment(setting: Setting) -> dict[str, str]:
    """Return the environment of a run; two runs go at once, so that each keeps to one thread unless it says."""
    return {"OMP_NUM_THREADS": "1", **os.environ, **setting.variables}


def run(setting: Setting, here: set[str], files: list[str]) -> bool:
    """Run the marked tests under a setting, print what happened, and say whether all passed."""
    began = time.monotonic()
    differing = sorted(line.split()[0] for line in probe(setting) - here)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "processors", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment(setting), capture_output=True, text=True, check=False)
    passed = done.returncode == 0
    if not passed:
        print(done.stdout[-20_000:], done.stderr[-4000:], sep="\n")
    last = (done.stdout.strip() or done.stderr.strip() or "nothing was told").splitlines()[-1]
    words = " ".join(f"{name}={value}" for name, value in setting.variables.items())
    bits = f"other bits than plainly here: {', '.join(differing)}" if differing else "the same bits as plainly here"
    print(f"{'passed' if passed else 'FAILED':8}{setting.name}: {last} [{words or 'nothing set'}; {bits}; "
          f"{time.monotonic() - began:.0f} s]", flush=True)  # fmt: skip
    return passed


@contextmanager
def busy() -> Iterator[None]:
    """Keep every core busy."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def marked() -> list[str]:
    """Return the test files with a test of that mark: collecting all others would take longer than running these."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("test_*.py"))]
    return [str(path.relative_to(ROOT)) for path in paths if "mark.processors" in path.read_text("utf-8")]


def main(words: list[str]) -> int:
    """Run the settings named (all if none), two at a time, and return 1 if any failed."""
    table = each(settings()) if "--each" in words else settings()
    names = [word for word in words if word != "--each"]
    if unknown := [name for name in names if name not in {setting.name for setting in table}]:
        print(f"There is no setting {', '.join(unknown)}. Choices: {', '.join(setting.name for setting in table)}.")
        return 2
    chosen = [setting for setting in table if not names or setting.name in names]
    have, files, here = flags(), marked(), probe(Setting(name=""))
    can = []
    for setting in chosen:
        if problem := obstacle(setting, have):
            print(f"SKIPPED {setting.name}: {problem}", flush=True)
        else:
            can.append(setting)
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda each: run(each, here, files), [each for each in can if each.name != BUSY]))
    for setting in can:
        if setting.name == BUSY:
            with busy():
                results.append(run(setting, here, files))
    print(f"{sum(results)} of {len(results)} settings passed, {len(chosen) - len(can)} skipped")
    return 0 if all(results) and results else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
