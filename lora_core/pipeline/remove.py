"""Remove: adapters leave a bundle, and their files with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.bundle.bundle import Bundle, Manifest
from lora_core.bundle.store import size_problems
from lora_core.bundle.transaction import change
from lora_core.errors import BundleError, Problem, UsageError
from lora_core.events import Emit, stage
from lora_core.pipeline.recording import Changed, checked, updated
from lora_core.pipeline.soundness import blaming_damage, rewritten_damage
from lora_core.suggestions import did_you_mean

if TYPE_CHECKING:
    from lora_core.hub import PluginHub


def remove(path: Path, names: Sequence[str], *, emit: Emit, hub: PluginHub) -> Bundle:
    """Remove adapters from the bundle at `path`; `lora_core.remove` documents arguments and errors."""
    wanted = tuple(dict.fromkeys(names))
    if not wanted:
        raise UsageError("There is no adapter to remove.")
    with change(path, emit) as changing, stage(emit, "Remove"):
        bundle = changing.bundle
        known = [adapter.name for adapter in bundle.manifest.adapters]
        unknown = [
            Problem(
                what=f"The bundle has no adapter {name!r}",
                where=str(path),
                remedy=did_you_mean(name, known, nothing="It has none."),
            )
            for name in wanted
            if name not in known
        ]
        if unknown:
            raise UsageError(unknown)
        _require(size_problems(bundle))
        backend = hub.backend(hub.spec_of(bundle).name, check_requirements=False)
        with blaming_damage(bundle):
            rewritten = backend.unlink(bundle, wanted, changing.out, emit)
        manifest = _without(bundle.manifest, frozenset(wanted))
        if rewritten is not None:
            changed = Changed.of(rewritten, (), changing.out, bundle.manifest.backend)
            _require(rewritten_damage(bundle, changed.artifacts))
            manifest = updated(manifest, changed)
            left = tuple(each for each in manifest.artifacts if each.path not in rewritten.dropped)
            manifest = attrs.evolve(manifest, artifacts=left)
        return changing.commit(checked(manifest))


def _require(problems: Iterable[Problem]) -> None:
    if found := list(problems):
        raise BundleError(found)


def _without(manifest: Manifest, names: frozenset[str]) -> Manifest:
    return attrs.evolve(
        manifest,
        artifacts=tuple(each for each in manifest.artifacts if each.adapter not in names),
        adapters=tuple(each for each in manifest.adapters if each.name not in names),
        methods=tuple(each for each in manifest.methods if each.adapter not in names),
    )
