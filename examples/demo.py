"""The main job on a real model: export SmolLM2 with two adapters, add a third, ask all of them the same question.

    make demo        (or: python examples/demo.py --model build/models/SmolLM2-135M-Instruct --output build/demo)

Every step is a `lora-core` command, printed before it runs. The first export takes about a minute; the bundle is
kept, so that a second run takes seconds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer

NATIVE = Path(__file__).parents[1] / "native"
C10 = "executorch/runtime/core/portable_type/c10"
ADAPTERS = Path(__file__).parent / "adapters"
QUESTION = "What is a clock?"
EXPORT = "pirate", "json"
LATER = "shout"
RUNNER = "runner"


def run(*arguments: str | Path) -> None:
    """Print and run a `lora-core` command; stop the demo with its exit code if it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ lora-core {shlex.join(words)}", flush=True)
    command = Path(sys.executable).with_name("lora-core")
    status = subprocess.run([command, *words], check=False).returncode
    if status:
        sys.exit(status)


def export(model: Path, bundle: Path, cache: Path) -> None:
    """Export the base with two adapters, and link the third."""
    print("==> Exporting (about a minute on two cores: two programs, a few layers of each; later runs reuse them)")
    adapters = [argument for name in EXPORT for argument in ("--adapter", f"{name}={ADAPTERS / name}")]
    lengths = ("--max-context-len", "512", "--max-seq-len", "256")
    run("export", "--backend", "xnnpack", "--model", model, *adapters, *lengths, "--cache", cache, "-o", bundle)
    print("\n==> Adding an adapter: linking, without the base weights and without torch")
    run("add", bundle, "--adapter", f"{LATER}={ADAPTERS / LATER}")


def answer_on_device(bundle: Path, output: Path, building: subprocess.Popen[bytes] | None) -> None:
    """Pack an adapter, and have the C++ runner link it and answer: no Python is in that process."""
    print("\n==> On a device: the C++ runner links an adapter from a package, then answers")
    if building is None:
        print("skipped: there is no C++ compiler (g++ or clang++) on this machine")
        return
    if building.wait():
        sys.exit("The runner did not compile.")
    package, linked = output / "pirate.lora", output / "linked"
    run("pack", bundle, "pirate", "-o", package)
    linked.mkdir(exist_ok=True)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json"))
    question = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    prompt = ",".join(map(str, tokenizer.encode(question, add_special_tokens=False).ids))
    files = ("template/0.pte", "template/0.json")
    words = [*(bundle / file for file in files), package, linked / "pirate.pte", linked / "pirate.ptd"]
    told = f"pirate={','.join(map(str, words))}"
    command = [output / RUNNER, bundle / "foundation.ptd", prompt, "24", "--link", told]
    print(f"$ runner {bundle / 'foundation.ptd'} PROMPT 24 --link {told}", flush=True)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        print(f"{answer['name']} ({answer['anonymous_kb'] / 1e3:.0f} MB): {tokenizer.decode(answer['tokens'])}")


def start_building(output: Path) -> subprocess.Popen[bytes] | None:
    """Start to compile native/ and its runner against the ExecuTorch that is installed (as its CMakeLists.txt does)."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    found = find_spec("executorch")
    assert found is not None
    assert found.submodule_search_locations
    root = Path(next(iter(found.submodule_search_locations)))
    names = ("libexecutorch.so", "libexecutorch_kernels_optimized.so", "libexecutorch_backend_xnnpack.so")
    includes = (NATIVE / "include", NATIVE / "src", *(root / "include" / part for part in ("", C10)))
    sources = [*sorted((NATIVE / "src").glob("*.cpp")), *sorted((NATIVE / "examples").glob("*.cpp"))]
    flags = ["-std=c++17", "-O2", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED"]
    flags += [word for include in includes for word in ("-isystem", str(include))]
    libraries = ["-Wl,--no-as-needed", *(str(root / "lib" / name) for name in names), f"-Wl,-rpath,{root / 'lib'}"]
    return subprocess.Popen([compiler, *flags, *map(str, sources), *libraries, "-o", str(output / RUNNER)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Export SmolLM2 with real adapters, run it, show what is shared.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    arguments = parser.parse_args()
    bundle = arguments.output / "smollm2-xnnpack"
    start = time.monotonic()
    arguments.output.mkdir(parents=True, exist_ok=True)
    building = start_building(arguments.output)
    if (bundle / "manifest.json").exists():
        print(f"==> {bundle} is there from an earlier run ('make clean-demo' forgets it)")
    else:
        export(arguments.model, bundle, arguments.output / "cache")
    print("\n==> One question to the base and to the adapters, all loaded in one process")
    chosen = [word for name in ("base", *EXPORT, LATER) for word in ("--adapter", name)]
    packed = ("--packed-cache", arguments.output / "packed")
    run("run", bundle, *chosen, "--prompt", QUESTION, "--max-new-tokens", "40", *packed)
    print("\n==> What is stored once, by hash")
    run("inspect", bundle)
    answer_on_device(bundle, arguments.output, building)
    print(f"\n==> Done in {time.monotonic() - start:.0f} s. The bundle is {bundle}", flush=True)


if __name__ == "__main__":
    main()
