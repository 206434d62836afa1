"""File names of a hand-over: one place, so that every file agrees with every other."""

from __future__ import annotations

from lora_core_qnn_sim.artifacts.context_binary import GRAPH

WEIGHT_LIST = "lora_weight_list.txt"
IMPORTER = "lora_importer_config.yaml"
ADAPTER_WEIGHTS = "lora_adapter_weights.yaml"
ADAPTOR_LIST = "lora_adaptor_list.yaml"
GENIE = "genie_config.json"
TOKENIZER = "tokenizer/tokenizer.json"
README = "README.md"
BASE_ENCODINGS = f"{GRAPH}.encodings"
MODEL = f"{GRAPH}.onnx"
MODEL_DATA = f"{MODEL}.data"


def safetensors_file(adapter: str) -> str:
    """Return the file of a use case's LoRA weights."""
    return f"{adapter}.safetensors"


def encodings_file(adapter: str) -> str:
    """Return the file of a use case's encodings."""
    return f"{GRAPH}_{adapter}.encodings"


def line_file(adapter: str) -> str:
    """Return the text file that ONNX Runtime's QNN provider takes for an adapter."""
    return f"{adapter}_ort_qnn.txt"


def adapter_files(adapter: str) -> tuple[str, ...]:
    """Return every file that a use case has for itself."""
    return (safetensors_file(adapter), encodings_file(adapter), line_file(adapter))


def adapter_of_line(file: str) -> str | None:
    """Return the adapter whose `line_file` is called `file`, if it is one."""
    ending = line_file("")
    return file.removesuffix(ending) if file.endswith(ending) and file != ending else None
