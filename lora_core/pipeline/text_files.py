"""Files of a bundle that say how someone is prompted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from lora_core.backend import WrittenFile
from lora_core.bundle.durable import storage_errors
from lora_core.prompting import Prompting

ROLE = "tokenizer"


@attrs.frozen(kw_only=True)
class TextFiles:
    """How someone is prompted, and the files by their paths in the bundle that say so and are not there yet."""

    prompting: Prompting | None
    files: Mapping[str, bytes]

    def write(self, out: Path, adapter: str | None = None) -> Iterator[WrittenFile]:
        """Write the files into `out`, and yield them as files of `adapter` (None: of the base)."""
        for path, data in self.files.items():
            target = out / path
            with storage_errors("write", target):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            yield WrittenFile(path=path, role=ROLE, adapter=adapter)
