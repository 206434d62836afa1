"""What is fuzzed: every reader of strangers' bytes, with honest files to begin from."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.layers import LayerInfo, ModelSummary
from tests.security.fuzz_base_targets import bases, fleets
from tests.security.fuzz_sealed_targets import sealed_containers, sealed_packages
from tests.security.fuzz_target import ALLOWED_ELSE, WHERE, Target, from_file, safetensors

SUMMARY = ModelSummary(
    name="m",
    family="llama",
    layers=(LayerInfo(name="model.layers.0.self_attn.q_proj", kind="linear", in_features=8, out_features=8),),
    module_names=("model", "model.layers.0.self_attn.q_proj"),
)
MODULE = SUMMARY.layers[0].name


def targets(folder: Path) -> dict[str, Target]:
    """Return all targets by name; `folder` is where they put files, best in memory."""
    makers: Sequence[Callable[[Path], Mapping[str, Target]]] = (
        *(_core, _adapters, _xnnpack, _coreml, _qnn_sim, sealed_containers, _onnx, bases, fleets),
    )
    return {name: target for make in makers for name, target in make(folder).items()}


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a directory to put files into, in memory where there is such a place."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def _core(folder: Path) -> dict[str, Target]:
    from lora_core.bundle.manifest import loads
    from lora_core.intake.plain_json import parse_json
    from lora_core.tensors import open_tensors

    golden = Path(__file__).parents[1] / "bundle" / "golden"
    manifests = [path.read_bytes() for path in sorted(golden.glob("manifest-schema-*.json"))]
    config = json.dumps({"a": [1, 2.5, None, True, "ü"], "b": {"c": {"d": []}}}).encode()
    return {
        "JSON": Target(read=parse_json, seeds=[config], allowed=ALLOWED_ELSE),
        "manifest": Target(read=lambda data: loads(data, "manifest.json"), seeds=manifests),
        "safetensors": Target(
            read=from_file(open_tensors, folder, "x.safetensors"),
            seeds=[safetensors({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)})],
        ),
    }


def _adapters(folder: Path) -> dict[str, Target]:
    from lora_core.adapters.gguf.container import open_gguf
    from lora_core.adapters.mlx_lm.format import MlxLmFormat
    from lora_core.adapters.packages.reading import AdapterPackage
    from lora_core.adapters.packages.writing import Source, package_bytes
    from lora_core.adapters.peft.format import PeftFormat
    from tests.adapters.gguf_cases import write_gguf

    pair = {
        f"{MODULE}.lora_A.weight": np.ones((2, 8), np.float32),
        f"{MODULE}.lora_B.weight": np.ones((8, 2), np.float32),
    }
    peft, mlx = folder / "peft", folder / "mlx"
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {"x": 2}}
    for directory in (peft, mlx):
        directory.mkdir()
    (peft / "adapter_config.json").write_text(json.dumps(config))
    weights = safetensors({f"base_model.model.{name}": value for name, value in pair.items()})
    (peft / "adapter_model.safetensors").write_bytes(weights)
    adapter = PeftFormat().read("a", peft, SUMMARY)
    package = b"".join(package_bytes(adapter, Source(foundation="0" * 64, template="0" * 64, plan="0" * 64)))
    gguf = write_gguf(folder / "seed.gguf", {MODULE: tuple(pair.values())}, heads=(2, 2)).read_bytes()
    told = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 2.0}, "model": "m"}
    mlx_pair = {f"{MODULE}.lora_a": np.ones((8, 2), np.float32), f"{MODULE}.lora_b": np.ones((2, 8), np.float32)}
    (mlx / "adapters.safetensors").write_bytes(safetensors(mlx_pair))
    (mlx / "adapter_config.json").write_text(json.dumps(told))
    return {
        "PEFT configuration": Target(
            read=from_file(lambda _: PeftFormat().read("a", peft, SUMMARY), peft, "adapter_config.json"),
            seeds=[json.dumps(config).encode()],
        ),
        "MLX-LM configuration": Target(
            read=from_file(lambda _: MlxLmFormat().read("a", mlx, SUMMARY), mlx, "adapter_config.json"),
            seeds=[json.dumps(told).encode()],
        ),
        "GGUF": Target(read=from_file(open_gguf, folder, "x.gguf"), seeds=[gguf]),
        "adapter package": Target(read=from_file(AdapterPackage.open, folder, "x.lora"), seeds=[package]),
        "sealed adapter package": sealed_packages(folder, package, SUMMARY),
    }


def _xnnpack(folder: Path) -> dict[str, Target]:
    from lora_core_xnnpack.files.data_file import DataBlob, serialize
    from lora_core_xnnpack.files.parts import data_parts, program_parts
    from lora_core_xnnpack.files.program import ProgramParts
    from lora_core_xnnpack.files.program_root import NOT_WHOLE, damaged
    from lora_core_xnnpack.split.relocations import read_table

    from plugins.xnnpack.tests.synthetic import make_template, plan_of

    template = make_template(plan_of({"m": (2, 8, 8), "n": (2, 8, 4)}), seed=2)
    data = b"".join(map(bytes, serialize([DataBlob.under_content_key(bytes([value]) * 16) for value in range(3)])))

    def program(content: bytes) -> None:
        program_parts(content, WHERE)
        try:
            ProgramParts.parse(content)
        except NOT_WHOLE as error:
            raise damaged(WHERE, error) from error

    return {
        "FlatTensor": Target(read=lambda content: data_parts(content, WHERE), seeds=[data]),
        "PTE": Target(read=program, seeds=[template.program]),
        "relocation table": Target(
            read=from_file(lambda path: read_table(path, template.program), folder, "0.json"),
            seeds=[template.table.to_json("f0" * 32).encode()],
        ),
    }


def _coreml(folder: Path) -> dict[str, Target]:
    from lora_core_coreml.sharing import stored_records
    from lora_core_coreml.storage import blobfile, flatten, mil
    from lora_core_coreml.storage.flatten import Region

    from lora_core.intake.parsing import parsing

    def model(content: bytes) -> None:
        parsed = mil.parse_model(content)
        with parsing(WHERE):
            for function in parsed.mlProgram.functions.values():
                list(mil.blob_references(function))

    def blobs(path: Path) -> None:
        with parsing(path):
            list(stored_records(path, 0, path.stat().st_size))

    blob = blobfile.MilBlob(offset=64, dtype=1, data_offset=128, size=8, padding_bits=0)
    files = [Region(path="a/b", offset=0, size=4), Region(path="c", offset=4, size=0)]
    return {
        "MIL": Target(read=model, seeds=[_mil()]),
        "MIL blobs": Target(
            read=from_file(blobs, folder, "weight.bin"),
            seeds=[blobfile.header(1) + blobfile.record(blob) + struct.pack("<4e", *range(4)).ljust(64, b"\0")],
        ),
        "flattened package": Target(
            read=lambda content: (flatten.read_regions(content, where="file"), flatten.trailer_size(content)),
            seeds=[b"data" + flatten.trailer("root", files)],
        ),
    }


def _mil() -> bytes:
    """Return a program with one function, whose constants are in the blob file, in an attribute and inline."""
    from lora_core_coreml.storage import mil

    model: Any = mil.new_model()
    model.specificationVersion = 8
    function = model.mlProgram.functions["forward"]
    function.opset = "CoreML7"
    block = function.block_specializations["CoreML7"]
    for number in range(2):
        operation = block.operations.add(type="const")
        operation.outputs.add(name=f"w{number}")
        operation.attributes["val"].blobFileValue.fileName = mil.WEIGHTS_NAME
        operation.attributes["val"].blobFileValue.offset = 64
        operation.inputs["x"].arguments.add().value.blobFileValue.offset = 128
    block.outputs.append("w0")
    return mil.serialize(model)


def _qnn_sim(folder: Path) -> dict[str, Target]:
    from lora_core_qnn_sim.artifacts.container import read_container, write_container
    from lora_core_qnn_sim.encodings.aimet import read_aimet
    from lora_core_qnn_sim.grouping import read_groups

    write_container(folder / "seed.bin", "section", {"a": [1, {"b": 2}]}, {"t": np.ones((2, 2), np.int8)})
    one = {
        "name": "t",
        "enc_type": "PER_TENSOR",
        "dtype": "INT",
        "bw": 8,
        "is_sym": True,
        "scale": [0.5],
        "offset": [-128],
    }
    old = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "scale": 0.5, "offset": -3, "min": 0, "max": 1}
    encodings = [
        {"version": "1.0.0", "activation_encodings": [one], "param_encodings": []},
        {"version": "0.6.1", "activation_encodings": {"t": [old]}, "param_encodings": {"w": [old, old]}},
    ]
    groups = b"use_case:\n- name: a\n  weights_only: true\n  encodings_only: true\n- {name: b, weights_only: yes}\n"
    return {
        "AIMET encodings": Target(
            read=from_file(read_aimet, folder, "x.encodings"), seeds=[json.dumps(each).encode() for each in encodings]
        ),
        "YAML groups": Target(read=from_file(read_groups, folder, "x.yaml"), seeds=[groups]),
        "qnn_sim container": Target(
            read=from_file(lambda path: read_container(path, "section"), folder, "x.bin"),
            seeds=[(folder / "seed.bin").read_bytes()],
        ),
    }


def _onnx(folder: Path) -> dict[str, Target]:
    from lora_core_onnx.genai import context_len_of
    from lora_core_onnx.names import lora_input
    from lora_core_onnx.sharing import external_tensors
    from lora_core_onnx.storage.adapter_file import read_adapter, write_adapter
    from lora_core_onnx.storage.model_file import read_model
    from lora_core_onnx.stored_values import slots_in

    def model(path: Path) -> None:
        read_model(path)
        external_tensors(path)

    a, b = np.ones((2, 8), np.float32), np.ones((8, 2), np.float32)
    write_adapter(folder / "seed.onnx_adapter", "0" * 64, {lora_input("m", "a"): a, lora_input("m", "b"): b})
    told = json.dumps({"model": {"context_length": 16, "decoder": {"filename": "model.onnx"}}}).encode()
    return {
        "ONNX adapter": Target(
            read=from_file(lambda path: slots_in(read_adapter(path)), folder, "x.onnx_adapter"),
            seeds=[(folder / "seed.onnx_adapter").read_bytes()],
        ),
        "ONNX model": Target(read=from_file(model, folder, "model.onnx"), seeds=[_onnx_model()]),
        "genai configuration": Target(
            read=from_file(lambda path: context_len_of(path, 16), folder, "genai_config.json"), seeds=[told]
        ),
    }


def _onnx_model() -> bytes:
    """Return a model with its foundation, a rotary table and a matrix that lie in the weights file."""
    from lora_core_onnx.graph.assembly import Assembly
    from lora_core_onnx.storage.model_file import FOUNDATION, POSITIONS
    from lora_core_onnx.storage.weights import External

    table = External(name=POSITIONS, dtype=1, shape=(16, 4), offset=0, size=256)
    matrix = External(name="w", dtype=1, shape=(8, 8), offset=256, size=256)
    return Assembly().model([table, matrix], {FOUNDATION: "0" * 64})
