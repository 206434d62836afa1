"""Names of files and graph inputs: what the model, the adapters and onnxruntime-genai agree on."""

from __future__ import annotations

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
GENAI = "genai_config.json"
GENAI_TEXT = f"tokenizer/{GENAI}"
"""The same beside the tokenizer files, where onnxruntime-genai's tokenizer looks for it."""
ADAPTERS = "adapters"
SUFFIX = ".onnx_adapter"
PARTS = {"a": "lora_A.weight", "b": "lora_B.weight"}
"""Parts of a slot by what PEFT calls them."""


def adapter_file(name: str) -> str:
    """Return the path of the adapter `name` in a bundle."""
    return f"{ADAPTERS}/{name}{SUFFIX}"


def lora_input(module: str, part: str) -> str:
    """Name the graph input, and the parameter of an adapter file, that is `part` of the slot on `module`."""
    return f"{module}.{PARTS[part]}"


def slot_of(name: str) -> tuple[str, str]:
    """Return module and part of a name that `lora_input` gave; raises `ValueError` for any other."""
    for part, ending in PARTS.items():
        if name.endswith(f".{ending}"):
            return name.removesuffix(f".{ending}"), part
    raise ValueError(f"{name!r} is no part of a slot")
