"""The files about text that a model or an adapter comes with, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import InputError
from lora_core.git_lfs import is_pointer, told
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.intake.plain_json import parse_json

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
GENERATION = "generation_config.json"
VOCABULARIES = (TOKENIZER, "tokenizer.model")
FILES = (
    *VOCABULARIES,
    CONFIG,
    SPECIAL_TOKENS,
    ADDED_TOKENS,
    "vocab.json",
    "merges.txt",
    TEMPLATE,
    "chat_template.json",
    GENERATION,
)


@attrs.frozen(kw_only=True)
class StoredText:
    """Files by name, those in `additional_chat_templates/` with that folder; `error` is the class of refusals."""

    files: Mapping[str, Path]
    error: type[InputError]

    @classmethod
    def of(cls, paths: tuple[Path, ...], error: type[InputError]) -> StoredText:
        """Return the files at `paths`."""
        return cls(files={name_of(path): path for path in paths}, error=error)

    @classmethod
    def in_directory(cls, directory: Path, error: type[InputError]) -> StoredText:
        """Return those of the files that `directory` has."""
        return cls.of(files_in(directory), error)

    def has(self, *names: str) -> bool:
        """Say whether any of the files `names` is there."""
        return any(name in self.files for name in names)

    def where(self, name: str) -> str:
        """Return the path of a file for messages."""
        return str(self.files[name])

    def read(self, name: str) -> bytes:
        """Return the content of a file that is there; raises `error` for a git-lfs pointer or an unreadable file."""
        path = self.files[name]
        try:
            data = read_regular(path, limits.TOKENIZER, self.error)
        except OSError as error:
            raise self.error(f"The file cannot be read: {error}", where=str(path)) from error
        if is_pointer(data):
            raise self.error(told(path))
        return data

    def text(self, name: str) -> str:
        """Return the text of a file that is there; raises `error` if it is none."""
        try:
            return self.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"This is not UTF-8 text: {error}", where=self.where(name)) from error

    def object(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file, empty if there is no such file; raises `error` if it holds none."""
        if name not in self.files:
            return {}
        try:
            value = parse_json(self.text(name), digits=limits.LONGEST_TEXT_DIGITS)
        except ValueError as error:
            raise self.error(f"This is not JSON: {error}", where=self.where(name)) from error
        if not isinstance(value, dict):
            raise self.error("This holds no JSON object", where=self.where(name))
        return value


def name_of(path: Path) -> str:
    """Return the name under which the file at `path` travels: its own, with the folder of further templates."""
    return f"{TEMPLATES}/{path.name}" if path.parent.name == TEMPLATES else path.name


def files_in(directory: Path) -> tuple[Path, ...]:
    """Return the files about text in `directory`, in a fixed order."""
    further = sorted((directory / TEMPLATES).glob("*.jinja"))
    return (*(directory / name for name in FILES if (directory / name).is_file()), *further)
