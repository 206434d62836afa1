"""The main job on a real model: export SmolLM2 with two adapters, add a third, ask all of them the same question.

    make demo        (or: python examples/demo.py --model build/models/SmolLM2-135M-Instruct --output build/demo)

Every step is a `lora-core` command, printed before it runs. The first export takes several minutes; the bundle is
kept, so that a second run takes seconds.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

ADAPTERS = Path(__file__).parent / "adapters"
QUESTION = "What is a clock?"
EXPORT = "pirate", "json"
LATER = "shout"


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
    print("==> Exporting (about 5 minutes on two cores: two programs of 30 layers are lowered; later runs reuse them)")
    adapters = [argument for name in EXPORT for argument in ("--adapter", f"{name}={ADAPTERS / name}")]
    lengths = ("--max-context-len", "512", "--max-seq-len", "256")
    run("export", "--backend", "xnnpack", "--model", model, *adapters, *lengths, "--cache", cache, "-o", bundle)
    print("\n==> Adding an adapter: linking, without the base weights and without torch")
    run("add", bundle, "--adapter", f"{LATER}={ADAPTERS / LATER}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Export SmolLM2 with real adapters, run it, show what is shared.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    arguments = parser.parse_args()
    bundle = arguments.output / "smollm2-xnnpack"
    start = time.monotonic()
    if (bundle / "manifest.json").exists():
        print(f"==> {bundle} is there from an earlier run ('make clean-demo' forgets it)")
    else:
        arguments.output.mkdir(parents=True, exist_ok=True)
        export(arguments.model, bundle, arguments.output / "cache")
    print("\n==> One question to the base and to the adapters, all loaded in one process")
    chosen = [word for name in ("base", *EXPORT, LATER) for word in ("--adapter", name)]
    packed = ("--packed-cache", arguments.output / "packed")
    run("run", bundle, *chosen, "--prompt", QUESTION, "--max-new-tokens", "40", *packed)
    print("\n==> What is stored once, by hash")
    run("inspect", bundle)
    print(f"\n==> Done in {time.monotonic() - start:.0f} s. The bundle is {bundle}", flush=True)


if __name__ == "__main__":
    main()
