"""What callers give, as the pipeline uses it: a model by reference, adapters by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.names import name_problems
from lora_core.adapters.reference import AdapterReference
from lora_core.errors import AdapterError, ModelError, UncoveredModelError, UsageError
from lora_core.models import hub_cache
from lora_core.models.base import ModelHandle
from lora_core.pipeline.complaints import Complaints
from lora_core.specs import ReservedNames

if TYPE_CHECKING:
    from lora_core.adapters.format import AdapterFormat
    from lora_core.hub import PluginHub
    from lora_core.plugin.registry import Entry

_GENERIC = "`pip install lora-core-transformers` exports what transformers defines and torch.export takes."


def adapter_references(
    adapters: Mapping[str, str | Path] | Iterable[AdapterReference], reserved: ReservedNames | None = None
) -> tuple[AdapterReference, ...]:
    """Return references for directories by name, or the references as they are.

    Raises `UsageError` with every name that cannot be, those that a backend keeps for itself (`reserved`) among them.
    """
    if not isinstance(adapters, Mapping):
        return tuple(adapters)
    complaints = Complaints()
    references = []
    complaints.add(UsageError, name_problems(list(adapters), reserved=reserved or ReservedNames()))
    for name, path in adapters.items():
        with complaints.collect():
            references.append(AdapterReference(name=name, directory=Path(path)))
    complaints.raise_any()
    return tuple(references)


def located(references: Sequence[AdapterReference], *, download: bool = False) -> tuple[AdapterReference, ...]:
    """Return `references` with hub ids replaced by the directories in the local cache that they name.

    A directory that exists is that directory. With `download` an adapter that is not in the cache is fetched. Raises
    `AdapterError` with every one that is neither.
    """
    complaints = Complaints()
    found = []
    for reference in references:
        with complaints.collect():
            parts = tuple(
                attrs.evolve(part, of=_as_part(_located(Path(part.of), download=download)))
                if part.is_directory
                else part
                for part in reference.parts
            )
            directory = None if reference.directory is None else _located(reference.directory, download=download)
            found.append(attrs.evolve(reference, parts=parts, directory=directory))
    complaints.raise_any()
    return tuple(found)


def _located(path: Path, *, download: bool) -> Path:
    ref = path.as_posix()
    if path.exists() or not hub_cache.is_hub_id(ref):
        return path
    return hub_cache.resolve(ref, download=download, what="Adapter", error=AdapterError)


def _as_part(path: Path) -> str:
    """Return `path` so that a composite takes it for a directory."""
    return str(path) if path.is_absolute() else f"./{path}"


def adapter_formats(hub: PluginHub, model: ModelHandle | None = None) -> Sequence[AdapterFormat]:
    """Return every adapter format, those of plugins before the core's own: of equal claims the first one wins.

    With `model` they may use the weights of that base.
    """
    formats = tuple(hub.adapter_format(entry.name) for entry in format_entries(hub))
    return formats if model is None else tuple(each.with_weights(model.tensors) for each in formats)


def format_entries(hub: PluginHub) -> tuple[Entry[Any], ...]:
    """Return the descriptors of `adapter_formats`, in that order: from them another process makes the same."""
    entries = (hub.adapter_formats.entry(name) for name in hub.adapter_formats)
    return tuple(sorted(entries, key=lambda entry: entry.origin.core))


def open_model(
    model: str | Path | ModelHandle, hub: PluginHub, *, download: bool, source: str | None = None
) -> ModelHandle:
    """Return `model` if it is a handle, else open it with `source`, or with the first source that knows it; generic
    ones come after those that have no family for it.

    Raises `UsageError` for a source that there is not, `ModelError` if no source knows the model, or with what the
    source finds wrong.
    """
    if isinstance(model, ModelHandle):
        return model
    reference = str(model)
    if source is not None:
        return hub.model_source(source).open(reference, download=download)
    for name in (name for name, spec in hub.model_sources.items() if not spec.generic):
        known = hub.model_source(name)
        if not known.sniff(reference):
            continue
        try:
            return known.open(reference, download=download)
        except UncoveredModelError as error:
            return _open_generic(reference, hub, error, download=download)
    if "huggingface" in hub.model_sources:
        # The core's own source says what it finds instead (GGUF, an adapter, nothing) and what is supported.
        return hub.model_source("huggingface").open(reference, download=download)
    told = "; ".join(f"{name}: {spec.summary}" for name, spec in hub.model_sources.items())
    raise ModelError(f"{reference!r} is no model that any source knows.", remedy=f"Sources are: {told}.")


def _open_generic(reference: str, hub: PluginHub, refusal: UncoveredModelError, *, download: bool) -> ModelHandle:
    """Open what no family covers with the first generic source that knows it; raises `ModelError` with `refusal` too if
    that refuses it, and `refusal` itself if there is none.
    """
    names = [name for name, spec in hub.model_sources.items() if spec.generic]
    for name in names:
        source = hub.model_source(name)
        if source.sniff(reference):
            try:
                return source.open(reference, download=download)
            except ModelError as error:
                raise ModelError([*refusal.problems, *error.problems]) from error
    if names:
        raise refusal
    first, *others = refusal.problems
    raise UncoveredModelError([attrs.evolve(first, remedy=first.remedy or _GENERIC), *others]) from refusal
