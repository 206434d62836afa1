"""Packages and the device linker: sizes, times, memory.

    python benchmarks/device.py --bundle BUNDLE --adapter DIR [--repeats 21]

BUNDLE is a bundle for XNNPACK of either layout, DIR a PEFT adapter that fits its template. Builds `native/` by
CMake, packs the adapter as it is and in float16, links it from the command line, compares the files with those of
`lora-core add`, and prints rows for docs/benchmarks.md. CPU times are what compares on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.adapters.reference import AdapterReference

NATIVE = Path(__file__).parents[1] / "native"


def build(out: Path) -> tuple[Path, Path]:
    """Return the command line tool and the stripped library, as CMake builds them for release."""
    subprocess.run(["cmake", "-S", str(NATIVE), "-B", str(out / "native")], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(out / "native")], check=True, capture_output=True)
    (library,) = (out / "native").glob("liblora_core_link.*")
    stripped = out / "stripped"
    subprocess.run(["strip", "-o", str(stripped), str(library)], check=True)
    return out / "native" / "lora-core-link", stripped


def in_half(directory: Path, out: Path) -> Path:
    shutil.copytree(directory, out)
    weights = out / "adapter_model.safetensors"
    save_file({name: tensor.astype(np.float16) for name, tensor in load_file(weights).items()}, weights)
    return out


def in_one_program(bundle: Path) -> bool:
    return (bundle / "model.pte").exists()


def linked_files(bundle: Path) -> dict[str, str]:
    """Return what linking an adapter called `measured` writes, by what the tool calls it."""
    if in_one_program(bundle):
        return {"linked.pte": "model.pte"}
    return {"linked.pte": "measured.pte", "linked.ptd": "measured.ptd"}


def measure(tool: Path, bundle: Path, package: Path, out: Path, repeats: int) -> dict[str, float]:
    """Return medians of what the tool tells of itself, and the least CPU time."""
    template = bundle / "template" / ("model" if in_one_program(bundle) else "0")
    words = [tool, template.with_suffix(".pte"), template.with_suffix(".json"), package, out / "linked.pte"]
    words += ["--to", bundle / "model.pte", "measured"] if in_one_program(bundle) else [out / "linked.ptd"]
    told = [json.loads(subprocess.check_output([str(word) for word in words])) for _ in range(repeats)]
    medians = {name: statistics.median(each[name] for each in told) for name in told[0]}
    return {**medians, "least_cpu_ms": min(each["link_cpu_ms"] for each in told)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        tool, library = build(out)
        print(f"library, stripped: {library.stat().st_size / 1e3:.0f} kB")
        shutil.copytree(arguments.bundle, out / "bundle")
        for kind, directory in (("as it is", arguments.adapter), ("float16", in_half(arguments.adapter, out / "half"))):
            reference = AdapterReference(name="measured", directory=directory)
            package = lora_core.pack(out / "bundle", reference, out=out / "measured.lora")
            weights = (directory / "adapter_model.safetensors").stat().st_size
            print(f"{kind}: package {package.size:,} bytes, {package.size / weights:.4f} of its safetensors file")
            print(f"{kind}: {measure(tool, out / 'bundle', package.path, out, arguments.repeats)}")
            lora_core.add(out / "bundle", [AdapterReference(name="measured", package=package.path)])
            same = [
                (out / linked).read_bytes() == (out / "bundle" / added).read_bytes()
                for linked, added in linked_files(out / "bundle").items()
            ]
            lora_core.remove(out / "bundle", ["measured"])
            print(f"{kind}: the files of `lora-core add`: {'the same' if all(same) else 'others'}")


if __name__ == "__main__":
    main()
