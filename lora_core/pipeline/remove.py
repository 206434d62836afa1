"""Remove: adapters leave a bundle, and their files with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.bundle.bundle import Bundle
from lora_core.bundle.store import base_problems
from lora_core.bundle.transaction import change
from lora_core.errors import BundleError, Problem, UsageError
from lora_core.events import Emit, stage
from lora_core.pipeline.recording import Changed, checked, updated
from lora_core.pipeline.soundness import blaming_damage, damage, rewritten_damage
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
        if unknown := [name for name in wanted if bundle.record(name) is None]:
            known = [adapter.name for adapter in bundle.manifest.adapters]
            raise UsageError(
                Problem(
                    what=f"The bundle has no adapter {name!r}",
                    where=str(path),
                    remedy=did_you_mean(name, known, nothing="It has none."),
                )
                for name in unknown
            )
        _require(base_problems(bundle))
        backend = hub.backend(hub.spec_of(bundle).name, check_requirements=False)
        with blaming_damage(bundle):
            rewritten = backend.unlink(bundle, wanted, changing.out, emit)
        manifest = bundle.manifest.with_records(dropped=wanted)
        if rewritten is not None:
            changed = Changed.of(rewritten, (), changing.out, bundle.manifest.backend)
            _require((*damage(bundle), *rewritten_damage(bundle, changed.artifacts)))
            manifest = updated(manifest, changed)
            left = [each for each in manifest.base_artifacts if each.path not in rewritten.dropped]
            manifest = manifest.listing(left, manifest.records, manifest.base_methods)
        return changing.commit(checked(manifest))


def _require(problems: Iterable[Problem]) -> None:
    if found := list(problems):
        raise BundleError(found)
