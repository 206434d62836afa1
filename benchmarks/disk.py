"""What a bundle takes on disk with ten adapters: every file of it, beside the base weights and the adapters' own bytes.

    python benchmarks/disk.py BUNDLE [BUNDLE ...] [--count 10] [--json FILE]

Works on a copy (hard links): takes the bundle's adapters out and adds random ones that fill all slots of its first
plan, so that none is padded. `overhead` is all that is neither the foundation file nor an adapter's matrices: programs,
templates, manifest, tokenizer. The aim is at most 1 MB (10^6 bytes) for each adapter.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Slot = Mapping[str, Any]


def lora_core(*words: object) -> None:
    program = Path(sys.executable).with_name("lora-core")
    subprocess.run([str(word) for word in (program, *words, "--quiet")], check=True, stdout=subprocess.DEVNULL)


def write_adapter(directory: Path, slots: Sequence[Slot], seed: int) -> int:
    """Write a random adapter that fills every slot; return the bytes of its matrices."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for slot in slots:
        prefix = f"base_model.model.{slot['module']}"
        for side, shape in (
            ("A", (slot["rank"], slot["in_features"])),
            ("B", (slot["out_features"], slot["rank"])),
        ):
            tensors[f"{prefix}.lora_{side}.weight"] = generator.standard_normal(shape, dtype=np.float32)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    ranks = {slot["module"]: slot["rank"] for slot in slots}
    fields = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "rank_pattern": ranks, "alpha_pattern": ranks}
    fields["target_modules"] = sorted(ranks)
    (directory / "adapter_config.json").write_text(json.dumps(fields), "utf-8")
    return sum(tensor.nbytes for tensor in tensors.values())


def figures(bundle: Path, count: int, work: Path) -> dict[str, Any]:
    """Return bytes by kind of a copy of `bundle` that holds `count` adapters."""
    copy = work / "bundle"
    shutil.copytree(bundle, copy, copy_function=os.link)
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    for adapter in manifest["adapters"]:
        lora_core("remove", copy, adapter["name"])
    slots = manifest["plans"][0]["slots"]
    own = [write_adapter(work / f"adapters/a{index}", slots, seed=index) for index in range(count)]
    lora_core("add", copy, "--from-dir", work / "adapters")
    sizes = {str(path.relative_to(copy)): path.stat().st_size for path in sorted(copy.rglob("*")) if path.is_file()}
    total, foundation = sum(sizes.values()), sizes["foundation.ptd"]
    return {
        "layout": manifest["options"].get("layout", "split"),
        "adapters": count,
        "total": total,
        "foundation": foundation,
        "adapters_own": sum(own),
        "overhead": total - foundation - sum(own),
        "tokenizer": sum(size for name, size in sizes.items() if name.startswith("tokenizer")),
        "files": {name: size for name, size in sizes.items() if name[0] != "a"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found = {}
    print("| bundle | layout | total | foundation | adapters' own | overhead | of it tokenizer | per adapter |")
    print("|---|---|---|---|---|---|---|---|")
    for bundle in chosen.bundle:
        # Beside the bundle, where hard links reach.
        with tempfile.TemporaryDirectory(dir=bundle.resolve().parent) as work:
            row = found[str(bundle)] = figures(bundle.resolve(), chosen.count, Path(work))
        kinds = ("total", "foundation", "adapters_own", "overhead", "tokenizer")
        cells = " | ".join(f"{row[kind] / 1e6:.2f} MB" for kind in kinds)
        print(f"| {bundle.name} | {row['layout']} | {cells} | {row['overhead'] / chosen.count / 1e6:.3f} MB |")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
