"""What transformers makes of a `tokenizer.json` whose class it rebuilds.

After transformers 5.23: `AutoTokenizer.from_pretrained` (models/auto/tokenization_auto.py) chooses a class;
the classes of the table below take vocabulary, merges and post-processor from the file, and the rest is their own.
Every other class takes the file as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]

_LLAMA, _QWEN2, _GPT2 = "LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer"
_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    _LLAMA: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    _QWEN2: {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    _GPT2: {"unk_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
}
# models/auto/tokenization_auto.py: what a model type's own class is, for the families that are read here
_OF_MODEL = {"qwen2": _QWEN2, "qwen3": _QWEN2, "mistral": ""}
_ALWAYS_ITS_OWN = ("qwen2",)
# models/qwen2/tokenization_qwen2.py: PRETOKENIZE_REGEX
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_class(config: Mapping[str, Any], document: Document, model_type: str | None) -> str:
    """Return the class that is rebuilt for a model of `model_type`, or nothing if the file is taken as it is."""
    told = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if told == _LLAMA and model_type not in _ALWAYS_ITS_OWN and _is_byte_level(document):
        return ""
    own = _OF_MODEL.get(model_type or "")
    if own is None:
        chosen = told
    elif own == "" or not told:
        chosen = own
    else:
        chosen = own if model_type in _ALWAYS_ITS_OWN else told
    return chosen if chosen in _DEFAULTS else ""


def defaults(chosen: str) -> Mapping[str, str]:
    """Return the special tokens that the class `chosen` has where nothing is said of them."""
    return _DEFAULTS.get(chosen, {})


def rebuilt(document: Document, chosen: str, config: Mapping[str, Any]) -> Document:
    """Return `document` as the class `chosen` rebuilds it; the same if there is nothing to rebuild."""
    model = document.get("model")
    if not chosen or not isinstance(model, dict) or model.get("type") not in (None, "BPE"):
        return document
    prefix = config.get("add_prefix_space")
    if chosen == _LLAMA:
        return _llama(document, model, prefix=prefix is None or bool(prefix), legacy=bool(config.get("legacy", False)))
    if chosen == _GPT2:
        return _gpt2(document, model, prefix=bool(prefix))
    return _qwen2(document, model, prefix=bool(prefix))


def _llama(document: Document, model: Document, *, prefix: bool, legacy: bool) -> Document:
    """`models/llama/tokenization_llama.py`."""
    scheme = ("always" if legacy else "first") if prefix else "never"
    decoders: list[Document] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        **document,
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**_bpe(model), "fuse_unk": True, "byte_fallback": True},
    }


def _gpt2(document: Document, model: Document, *, prefix: bool) -> Document:
    """`models/gpt2/tokenization_gpt2.py`."""
    return {
        **document,
        "normalizer": None,
        "pre_tokenizer": _byte_level(prefix=prefix, pattern=True),
        "decoder": _byte_level(prefix=True, pattern=True),
        "model": _bpe(model),
    }


def _qwen2(document: Document, model: Document, *, prefix: bool) -> Document:
    """`models/qwen2/tokenization_qwen2.py`."""
    level = _byte_level(prefix=prefix, pattern=False)
    split = {"type": "Split", "pattern": {"Regex": _QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        **document,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": _byte_level(prefix=True, pattern=True),
        "model": _bpe(model),
    }


def _byte_level(*, prefix: bool, pattern: bool) -> Document:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": pattern}


def _bpe(model: Document) -> Document:
    """Return a BPE model with nothing but its vocabulary and merges."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": model.get("vocab", {}),
        "merges": model.get("merges", []),
    }


def _is_byte_level(document: Document) -> bool:
    """`TokenizersBackend._tokenizer_json_has_byte_level`."""

    def holds(part: object) -> bool:
        if isinstance(part, dict):
            return part.get("type") == "ByteLevel" or any(holds(value) for value in part.values())
        return isinstance(part, list) and any(holds(each) for each in part)

    return any(holds(document.get(name)) for name in ("pre_tokenizer", "decoder"))
