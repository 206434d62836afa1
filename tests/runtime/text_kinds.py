"""Directories of tokenizer files as they are found, each a kind of its own, and small tokenizers to make them of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = "hello world what is a clock the quick brown fox 12345 [INST] jumps"
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
SPECIAL = ("<pad>", "<s>", "</s>", "<|end|>")
PADDING = {
    "strategy": {"Fixed": 64},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<pad>",
}
TRUNCATION = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
Document = dict[str, Any]


def byte_level() -> Document:
    """Return a tokenizer.json in GPT-2's manner."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return json.loads(tokenizer.to_str())


def sentence_piece() -> Document:
    """Return a tokenizer.json in Llama 2's manner: a normalizer writes spaces, a text begins with `<s>`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    special = ["<unk>", "<s>", "</s>", "<pad>", "<|end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*special, *bytes_], show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    document = json.loads(tokenizer.to_str())
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    document["pre_tokenizer"] = None
    document["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    document["decoder"] = {
        "type": "Sequence",
        "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip],
    }
    document["added_tokens"] = [entry for entry in document["added_tokens"] if entry["content"] in special]
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return document


def write(
    directory: Path,
    document: Mapping[str, Any] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    model_type: str = "llama",
    template: str | None = CHAT,
    **files: Any,
) -> Path:
    """Write tokenizer files; `files` are further JSON files by name without ending. `config` is tokenizer_config.json,
    by default of a class that takes the file as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    if document is not None:
        (directory / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(plain if config is None else config), "utf-8")
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, "utf-8")
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value), "utf-8")
    return directory


def added(content: str, **flags: bool) -> Document:
    """Return an added token as configurations write it."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **plain, **flags}


NAMELESS = {"tokenizer_class": "PreTrainedTokenizerFast"}
MAP = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<pad>"}
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
Make = Callable[[Path], Path]

KINDS: Mapping[str, Make] = {
    "plain": lambda d: write(d, byte_level()),
    "padding to a length": lambda d: write(d, byte_level() | {"padding": PADDING}),
    "padding to a multiple": lambda d: write(
        d, byte_level() | {"padding": PADDING | {"strategy": "BatchLongest", "pad_to_multiple_of": 8}}
    ),
    "truncation": lambda d: write(d, byte_level() | {"truncation": TRUNCATION}),
    "padding and truncation": lambda d: write(d, sentence_piece() | {"padding": PADDING, "truncation": TRUNCATION}),
    "names in the map alone": lambda d: write(d, byte_level(), config=NAMELESS, special_tokens_map=MAP),
    "names as dictionaries in the map": lambda d: write(
        d, byte_level(), config=NAMELESS, special_tokens_map={name: added(text) for name, text in MAP.items()}
    ),
    "names in both, which differ": lambda d: write(d, byte_level(), special_tokens_map=MAP),
    "a decoder of added tokens, and a map that is not asked": lambda d: write(
        d,
        byte_level(),
        config={**NAMELESS, "eos_token": "</s>", "added_tokens_decoder": {"2": added("</s>")}},
        special_tokens_map=MAP,
    ),
    "an added token that tokenizer.json lacks": lambda d: write(
        d, byte_level(), config={**NAMELESS, **MAP, "added_tokens_decoder": {"299": added("<|tool|>")}}
    ),
    "an added token of other flags": lambda d: write(
        d, byte_level(), config={**NAMELESS, **MAP, "added_tokens_decoder": {"3": added("<|end|>", rstrip=True)}}
    ),
    "added tokens in a file of their own": lambda d: write(d, byte_level(), added_tokens={"<|tool|>": 299}),
    "a named token that is not added": lambda d: write(
        d,
        byte_level() | {"added_tokens": [each for each in byte_level()["added_tokens"] if each["id"] != 3]},
        config={**NAMELESS, "bos_token": "<s>", "eos_token": "<|end|>"},
    ),
    "a token of a name of its own": lambda d: write(
        d, byte_level(), config={**NAMELESS, **MAP, "turn_token": "hello"}, template="{{ turn_token }}" + CHAT
    ),
    "further special tokens": lambda d: write(
        d, byte_level(), config={**NAMELESS, **MAP, "additional_special_tokens": ["world"]}
    ),
    "special tokens of names": lambda d: write(
        d, byte_level(), config={**NAMELESS, **MAP, "extra_special_tokens": {"turn_token": "clock"}}
    ),
    "a flag that is no token": lambda d: write(
        d, byte_level(), config={**NAMELESS, **MAP, "add_bos_token": True}, template="{{ add_bos_token }}" + CHAT
    ),
    "a text of any length, as transformers writes it": lambda d: write(
        d, byte_level(), config={**NAMELESS, **MAP, "model_max_length": int(1e30)}
    ),
    "a beginning that is asked for": lambda d: write(
        d, byte_level(), config={**NAMELESS, **MAP, "add_bos_token": True}
    ),
    "Llama's class": lambda d: write(d, sentence_piece(), config=LLAMA),
    "Llama's class, legacy": lambda d: write(d, sentence_piece(), config={**LLAMA, "legacy": True}),
    "Llama's class, not legacy": lambda d: write(d, sentence_piece(), config={**LLAMA, "legacy": False}),
    "Llama's class without a prefix": lambda d: write(d, sentence_piece(), config={**LLAMA, "add_prefix_space": False}),
    "Llama's class of a byte-level file": lambda d: write(d, byte_level(), config=LLAMA),
    "Llama's class and no names": lambda d: write(
        d, sentence_piece(), config={"tokenizer_class": "LlamaTokenizerFast"}
    ),
    "Llama's class of a Mistral model": lambda d: write(d, sentence_piece(), config=LLAMA, model_type="mistral"),
    "no class": lambda d: write(d, sentence_piece(), config={"bos_token": "<s>", "eos_token": "</s>"}),
    "GPT-2's class": lambda d: write(d, byte_level(), config={**MAP, "tokenizer_class": "GPT2Tokenizer"}),
    "Qwen2's class": lambda d: write(
        d, byte_level(), config={**MAP, "tokenizer_class": "Qwen2Tokenizer"}, model_type="qwen3"
    ),
    "another class of a Qwen2 model": lambda d: write(d, byte_level(), config=LLAMA, model_type="qwen2"),
    "another class of a Qwen3 model": lambda d: write(d, byte_level(), model_type="qwen3"),
}
