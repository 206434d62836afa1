"""What is fuzzed of bases, fleets and bundles of many adapters; see `fuzz_targets.py`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.security.fuzz_target import WHERE, Target, from_file, safetensors

LAYER = "model.layers.0.mlp.down_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq"}


def bases(folder: Path) -> dict[str, Target]:
    """Return the readers of quantized checkpoints and of tokenizers."""
    return {
        **_quantized(folder),
        "tokenizer": Target(read=_tokenizer(folder), seeds=_tokenizers()),
        "model configuration": _configuration(folder),
        "GGUF base": Target(read=from_file(_gguf, folder, "base.gguf"), seeds=[_gguf_seed(folder)]),
    }


def fleets(folder: Path) -> dict[str, Target]:
    """Return the readers of a fleet's index, and of records beside a manifest."""
    from lora_core.fleet.index import FORMAT, VERSION, FleetIndex

    entry = dict.fromkeys(("place", "name", "key", "work", "signature", "adapter", "digest"), "a")
    line = json.dumps({**entry, "package": "a.lora", "size": 3}).encode()
    head = json.dumps({"format": FORMAT, "version": VERSION}).encode()
    read = from_file(FleetIndex.read, folder, "index.jsonl")
    return {
        "fleet index": Target(
            read=lambda data: read(data if data.startswith(head[:9]) else head + b"\n" + data), seeds=[line, head]
        ),
        "records": Target(read=_records(folder), seeds=[_record_node()]),
    }


def _quantized(folder: Path) -> dict[str, Target]:
    from lora_core.models.checkpoint import Checkpoint
    from lora_core.models.quantized.reading import dequantized
    from lora_core.tensors import open_tensors

    def read(path: Path, settings: Any) -> None:
        tensors = {tensor.name: tensor for tensor in open_tensors(path)}
        checkpoint, _, problems = dequantized(Checkpoint(directory=folder, tensors=tensors), settings, "config.json")
        for tensor in [] if problems else checkpoint.tensors.values():
            if type(tensor).__name__ != "StoredTensor":
                tensor.read()

    def read_as(settings: Any) -> None:
        told = settings.get("quant_method") if isinstance(settings, dict) else None
        place = folder / "whole.safetensors"
        place.write_bytes(_weights(told if isinstance(told, str) and told in _SETTINGS else "gptq"))
        read(place, settings)

    targets = {
        f"{method} weights": Target(
            read=from_file(lambda path, told=settings: read(path, told), folder, f"{method}.safetensors"),
            seeds=[_weights(method)],
        )
        for method, settings in _SETTINGS.items()
    }
    settings = [json.dumps(each).encode() for each in _SETTINGS.values()]
    targets["quantization settings"] = Target(read=lambda data: read_as(_json(data)), seeds=settings)
    return targets


_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "gptq": GPTQ,
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [4, 4]},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"weights": {"num_bits": 4, "symmetric": True}}},
    },
}


def _weights(method: str) -> bytes:
    """Return a layer of 8 by 32 values as `method` stores it."""
    state = np.frombuffer(json.dumps({"blocksize": 64, "shape": [8, 32]}).encode(), np.uint8)
    words, halves = (lambda *shape: np.full(shape, 0x12345678, np.int32)), (lambda *shape: np.ones(shape, np.float16))
    parts: Mapping[str, Mapping[str, Any]] = {
        "gptq": {
            "qweight": words(4, 8),
            "qzeros": words(2, 1),
            "scales": halves(2, 8),
            "g_idx": np.arange(32, dtype=np.int32) // 16,
        },
        "awq": {"qweight": words(32, 1), "qzeros": words(2, 1), "scales": halves(2, 8)},
        "bitsandbytes": {
            "weight": np.full((128, 1), 0x5A, np.uint8),
            "weight.absmax": np.ones(4, np.float32),
            "weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
            "weight.quant_state.bitsandbytes__nf4": state,
        },
        "fp8": {"weight": np.ones((8, 32), np.int8), "weight_scale_inv": np.ones((2, 8), np.float32)},
        "compressed-tensors": {
            "weight_packed": words(8, 4),
            "weight_scale": halves(8, 2),
            "weight_shape": np.array([8, 32], np.int64),
        },
    }
    return safetensors({f"{LAYER}.{ending}": value for ending, value in parts[method].items()})


def _json(data: bytes) -> Any:
    """Return what the reader of `config.json` would hand on; it has a target of its own."""
    from lora_core.errors import ModelError
    from lora_core.intake.plain_json import parse_json

    try:
        return parse_json(data)
    except ValueError as error:
        raise ModelError(str(error)) from error


def _tokenizer(folder: Path) -> Callable[[bytes], object]:
    from lora_core.runtime.tokenizer import TextTokenizer

    def read(data: bytes) -> None:
        directory = folder / "text"
        directory.mkdir(exist_ok=True)
        (directory / "tokenizer.json").write_bytes(data)
        with _silent():
            tokenizer = TextTokenizer.read(directory)
            tokenizer.decode([*tokenizer.encode("ab aaaaaaaa\n"), 0, 10**6])

    return read


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what the library's panics print from standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _tokenizers() -> list[bytes]:
    empty = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"))
    added = [{"id": 3, "content": "<s>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}]
    added = [{**each, "single_word": False} for each in added]
    words = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<unk>": 2}, "unk_token": "<unk>"}
    pairs = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "byte_fallback": False}
    split = {"type": "Split", "pattern": {"Regex": " |\\s+"}, "behavior": "Isolated", "invert": False}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "_"}
    full = {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}, replace]},
        "pre_tokenizer": split,
        "decoder": {"type": "Sequence", "decoders": [replace, {"type": "Fuse"}]},
        "model": {**pairs, "unk_token": None, "fuse_unk": False},
    }
    documents = ({"model": words}, full, {**full, "decoder": {"type": "Strip", "content": "_", "start": 1, "stop": 0}})
    return [json.dumps({"version": "1.0", "added_tokens": added} | empty | each).encode() for each in documents]


def _configuration(folder: Path) -> Target:
    from lora_core.models.hf import HfModelSource
    from lora_core.testing.families import write_tiny_family

    directory = write_tiny_family(folder / "model", "llama")
    return Target(
        read=from_file(lambda _: HfModelSource().open(str(directory)).summary, directory, "config.json"),
        seeds=[(directory / "config.json").read_bytes()],
    )


def _gguf(path: Path) -> None:
    from lora_core.models.gguf.source import GgufModelSource

    for tensor in GgufModelSource().open(str(path)).tensors().values():
        tensor.read()


def _gguf_seed(folder: Path) -> bytes:
    from gguf import GGMLQuantizationType

    from lora_core.testing.families import write_tiny_family
    from tests.models.gguf_models import write_model

    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    checkpoint = write_tiny_family(folder / "checkpoint", "llama", **sizes)
    told = {"rope.dimension_count": 16, "rope.freq_base": 10000.0}
    return write_model(folder / "seed.gguf", checkpoint, "llama", told, kind=GGMLQuantizationType.Q8_0).read_bytes()


def _records(folder: Path) -> Callable[[bytes], object]:
    from lora_core.bundle.entries import Branch
    from lora_core.bundle.paths import records_file
    from lora_core.bundle.record_files import RecordFiles

    root = folder / "records"
    place = root / records_file("2")
    place.parent.mkdir(parents=True, exist_ok=True)

    def read(data: bytes) -> object:
        place.write_bytes(data)
        branch = Branch(prefix="2", adapters=1, sha256=hashlib.sha256(data).hexdigest())
        return RecordFiles(root=root, paths=frozenset({str(WHERE)}), plans=1).read(branch)

    return read


def _record_node() -> bytes:
    from lora_core.bundle.entries import AdapterRecord, Artifact, BundledAdapter, Method
    from lora_core.bundle.records import RecordNode, key

    name = next(name for name in map(str, range(1000)) if key(name).startswith("2"))
    adapter = BundledAdapter(name=name, digest="d", foundation="f", rank=2, modules=1, plan=0, detail={"x": [1]})
    artifact = Artifact(path="a.bin", role="adapter-data", sha256="0" * 64, size=3, adapter=name)
    method = Method(name=name, program=str(WHERE), adapter=name)
    record = AdapterRecord(adapter=adapter, artifacts=(artifact,), methods=(method,))
    return RecordNode.of("2", [record]).data
