"""Stored tensors of a bundle as blobs: what the sharing proof is computed from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from lora_core.bundle.bundle import Bundle


@attrs.frozen(kw_only=True)
class Blob:
    """One stored tensor: where it lies, its SHA-256, and which methods read it.

    `methods` are names of the bundle's methods (`forward` for the base, an adapter's name for its own). `group` is a
    word for people (`attention`, `embedding`, `lora`).
    """

    key: str
    file: str
    offset: int
    size: int
    sha256: str
    methods: frozenset[str]
    group: str = ""


@attrs.frozen(kw_only=True)
class FilePart:
    """Bytes of a file that are no stored tensor: `what` is a word for people (`header`, `program`, `relocations`).

    `copy_of` is where the same bytes stand in another file (and from which byte on), if the user asked for a copy of
    what is stored: it is compared, and not weighed.
    """

    file: str
    offset: int
    size: int
    what: str
    copy_of: tuple[str, int] | None = None


class WeightSharing(ABC):
    """How a backend stores the base once; lists the blobs of a bundle by reading the stored bytes.

    `plain_weights` says that a weight at full precision is a blob of its float32 bytes, row after row (out_features,
    in_features), so that `verify` can find it by its hash.
    """

    plain_weights: bool = False

    @abstractmethod
    def blobs(self, bundle: Bundle) -> Iterable[Blob]:
        """Yield every stored tensor, hashed from its bytes on disk, never from metadata."""

    def parts(self, bundle: Bundle) -> Iterable[FilePart] | None:  # noqa: ARG002 - the default uses no argument
        """Yield all that the files hold beside the blobs: headers, programs, tables; from the stored bytes.

        Who does so promises that every byte is in a blob or a part, but for zeros that align them; `inspect` and
        `verify` then fail on any other byte. None (the default) promises nothing: what is in no blob is weighed.
        """
        return None

    @abstractmethod
    def fingerprint(self, bundle: Bundle) -> str:
        """Return the SHA-256 hex that identifies the stored foundation."""
