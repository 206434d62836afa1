"""Convert: an adapter of any format that is read, written as PEFT saves it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.names import safe_name
from lora_core.adapters.peft.writing import write_peft
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference
from lora_core.bundle.durable import storage_errors
from lora_core.bundle.exchange import exchange
from lora_core.errors import UsageError
from lora_core.events import Emit, stage
from lora_core.layers import ModelSummary
from lora_core.models.base import ModelHandle
from lora_core.pipeline.given import adapter_formats, located, open_model
from lora_core.pipeline.written import telling_of
from lora_core.temporary import removed_afterwards

if TYPE_CHECKING:
    from lora_core.hub import PluginHub


def refuse_occupied(out: Path, *, force: bool) -> None:
    """Raise `UsageError` if there is something at `out` that may not be replaced."""
    if out.exists() and not force:
        raise UsageError(f"There is something at {str(out)!r} already", remedy="Say --force to replace it.")


def convert(
    adapter: Path,
    out: Path,
    *,
    model: str | Path | ModelHandle | None,
    download: bool,
    force: bool,
    emit: Emit,
    hub: PluginHub,
) -> Adapter:
    """Write `adapter` as the PEFT directory `out`; `lora_core.convert` documents arguments and errors."""
    refuse_occupied(out, force=force)
    name = safe_name(adapter.resolve().stem)
    (reference,) = located((AdapterReference(name=name, directory=adapter),), download=download)
    formats = adapter_formats(hub)
    with stage(emit, "Convert"):
        base = _base(reference, formats, model, hub)
        (read,) = read_adapters([reference], base, formats)
        write_directory(out, lambda made: write_peft(read, made), emit)
    return read


def _base(
    reference: AdapterReference,
    formats: Sequence[AdapterFormat],
    model: str | Path | ModelHandle | None,
    hub: PluginHub,
) -> ModelSummary:
    """Return the base that is given, else what the adapter itself tells of it."""
    if model is not None:
        return open_model(model, hub, download=False).summary
    path = reference.directory
    assert path is not None, "the reference was made of a path"
    surest = max(formats, key=lambda each: each.sniff(path))
    if not surest.sniff(path):
        # What is wrong with the path is for the reader to say.
        return ModelSummary(name="", family="", layers=(), module_names=())
    return surest.implied_base(path)


def write_directory(out: Path, write: Callable[[Path], None], emit: Emit) -> None:
    """Have `write` fill a directory beside `out`, and put that in its place when it is whole."""
    work = out.with_name(f".{out.name}.{os.urandom(4).hex()}")
    made = work / "made"
    with storage_errors("write", out), removed_afterwards(work):
        made.mkdir(parents=True)
        write(made)
        with telling_of(out, emit):
            if out.is_dir():
                exchange(made, out)
            else:
                out.unlink(missing_ok=True)
                made.rename(out)
