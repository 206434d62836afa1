"""Keys of stored data in a program, taken as what they stand for: names of tensors instead of hashes of their bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import attrs

from lora_core_xnnpack.cache.forms import Form
from lora_core_xnnpack.stamping.elements import NotStampableError, join_numbers, split_numbers

_KEY = re.compile(rb"(?:scale_)?[0-9a-f]{64}")


@attrs.frozen(kw_only=True, order=True)
class BaseKey:
    """The content key of a base tensor in the form `form`, behind `prefix`."""

    form: Form
    prefix: str = ""

    @property
    def path(self) -> str:
        """The tensor's path in the module."""
        return self.form.path

    def at(self, path: str) -> BaseKey:
        """Return the key of the same tensor of another layer."""
        return attrs.evolve(self, form=attrs.evolve(self.form, path=path))


@attrs.frozen(kw_only=True, order=True)
class SlotKey:
    """The content key of one `part` of the slot at `path`, in the plan number `plan`."""

    plan: int
    path: str
    part: str
    prefix: str = ""

    def at(self, path: str) -> SlotKey:
        """Return the key of the same part of another layer's slot."""
        return attrs.evolve(self, path=path)


StoredKey = BaseKey | SlotKey
Texts = Callable[[StoredKey], str]
"""What stands in a payload for a key."""
Key = TypeVar("Key", bound=StoredKey)


def mask(key: StoredKey) -> tuple[StoredKey, tuple[int, ...]]:
    """Return `key` without the numbers in its path, and these."""
    path, numbers = split_numbers(key.path)
    return key.at(path), numbers


def unmask(key: Key, numbers: Sequence[int]) -> Key:
    """Return the key that `mask` took apart."""
    found = key.at(join_numbers(key.path, numbers))
    assert isinstance(found, type(key))
    return found


def stand_in(key: StoredKey) -> str:
    """Return a text of the length of a content key that no other tensor has."""
    return key.prefix + hashlib.sha256(repr(key).encode("utf-8")).hexdigest()


@attrs.frozen(kw_only=True)
class Payload:
    """A delegate's payload without keys (zeros stand for them), and which key stands at which offset."""

    data: bytes
    keys: tuple[tuple[int, StoredKey], ...]

    @classmethod
    def read(cls, payload: bytes, known: Mapping[str, StoredKey]) -> Payload:
        """Take the keys out of `payload`; raises `NotStampableError` for one that is not `known`."""
        data, found = bytearray(payload), []
        for match in _KEY.finditer(payload):
            text = match.group().decode("ascii")
            if text not in known:
                raise NotStampableError(f"the key {text} belongs to no tensor of the model")
            found.append((match.start(), known[text]))
            data[match.start() : match.end()] = bytes(len(text))
        return cls(data=bytes(data), keys=tuple(found))

    def with_texts(self, texts: Texts) -> bytes:
        """Return the payload with the text of each key in its place."""
        data = bytearray(self.data)
        for offset, key in self.keys:
            text = texts(key).encode("ascii")
            data[offset : offset + len(text)] = text
        return bytes(data)
