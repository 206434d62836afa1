"""Tokens as transformers makes them: what a bundle's are compared with."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_core.errors import InputError, UnsupportedError
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.intake.plain_json import parse_json
from lora_core.models.reference_model import ReferenceTemplate, ReferenceText
from lora_core.models.text.stored import (
    ADDED_TOKENS,
    CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER,
    files_in,
    name_of,
)
from lora_core.models.transformers_reference import silent
from lora_core.temporary import temporary_directory

_OF_THE_TOKENIZER = (TOKENIZER, CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, "vocab.json", "merges.txt", "tokenizer.model")


def open_text(directory: Path, adapter: Path | None) -> TransformersText:
    """Return `AutoTokenizer` on the model in `directory`, the files beside the adapter in `adapter` before its own.

    Raises `UnsupportedError` if transformers is not installed or cannot read them.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UnsupportedError("transformers is not installed.", remedy="Install it to compare tokens.")
    with temporary_directory("verify") as scratch, silent():
        try:
            from transformers import AutoTokenizer

            _join(directory, adapter, scratch)
            return TransformersText(AutoTokenizer.from_pretrained(scratch, local_files_only=True))
        except Exception as error:
            where = str(adapter or directory)
            raise UnsupportedError(f"transformers cannot read the tokenizer: {error}", where=where) from error


def open_gguf_text(file: Path) -> TransformersText:
    """Return `AutoTokenizer` on the tokenizer inside a GGUF file; raises `UnsupportedError` as `open_text` does."""
    if importlib.util.find_spec("transformers") is None:
        raise UnsupportedError("transformers is not installed.", remedy="Install it to compare tokens.")
    try:
        return TransformersText(load_tokenizer(file.parent, file.name))
    except Exception as error:
        raise UnsupportedError(f"transformers cannot read the tokenizer: {error}", where=str(file)) from error


def load_tokenizer(directory: Path, gguf_file: str | None = None) -> Any:
    """Return the `AutoTokenizer` of `directory`, or of the GGUF file of that name in it."""
    with silent():
        from transformers import AutoTokenizer

        inside = {} if gguf_file is None else {"gguf_file": gguf_file}
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, **inside)


class TransformersText(ReferenceText):
    """An `AutoTokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def name(self) -> str:
        """The version of transformers."""
        return f"transformers {version('transformers')}"

    @property
    def eos_id(self) -> int | None:
        """The tokenizer's own end of text."""
        found: int | None = self._tokenizer.eos_token_id
        return found

    @property
    def template(self) -> ReferenceTemplate | None:
        """The tokenizer's default template."""
        try:
            source = self._tokenizer.get_chat_template()
        except Exception:  # noqa: BLE001  there is none, or none of several is the default
            return None
        return ReferenceTemplate(source=source, special_tokens=self._tokenizer.special_tokens_map)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of `text`, with the special tokens that go around it."""
        return tuple(self._tokenizer(text)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...] | None:
        """Return the tokens of the prompt for `messages`; None if there is no template, or it fails."""
        try:
            tokens = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except Exception:  # noqa: BLE001  a template is a stranger's code; that ours fails as well is compared
            return None
        return tuple(tokens)


def _join(directory: Path, adapter: Path | None, target: Path) -> None:
    """Write the files of the model with those of the adapter before them into `target`.

    An adapter's own tokenizer.json takes the place of the whole tokenizer of the model; without one, what its
    configuration says goes over the model's.
    """
    files = {name_of(path): path for path in (directory / "config.json", *files_in(directory)) if path.is_file()}
    own = {} if adapter is None else {name_of(path): path for path in files_in(adapter)}
    told: dict[str, Any] = {}
    if TOKENIZER in own:
        files = {name: path for name, path in files.items() if name not in _OF_THE_TOKENIZER}
    elif own.keys() & {CONFIG, SPECIAL_TOKENS}:
        layers = [_object(each.get(name)) for each in (files, own) for name in (CONFIG, SPECIAL_TOKENS)]
        layers[1], layers[3] = _typed(layers[1]), _typed(layers[3])
        kept = {"tokenizer_class": layers[0].get("tokenizer_class")}
        told = {**layers[0], **layers[1], **layers[2], **layers[3], **kept}
        files, own = (
            {name: path for name, path in each.items() if name not in (CONFIG, SPECIAL_TOKENS)} for each in (files, own)
        )
        if "chat_template" in layers[2]:
            files = {name: path for name, path in files.items() if "template" not in name}
    if any("template" in name for name in own):
        files = {name: path for name, path in files.items() if "template" not in name}
    for name, path in {**files, **own}.items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)
    if told:
        (target / CONFIG).write_text(json.dumps(told), "utf-8")


def _typed(special: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens of a special_tokens_map.json as tokenizer_config.json spells them."""
    return {
        name: {"__type": "AddedToken", **value} if isinstance(value, dict) else value for name, value in special.items()
    }


def _object(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    value = parse_json(read_regular(path, limits.TOKENIZER, InputError), digits=limits.LONGEST_TEXT_DIGITS)
    return value if isinstance(value, dict) else {}
