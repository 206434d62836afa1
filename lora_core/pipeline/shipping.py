"""Ship: a bundle is split into what goes with an app and a package for each adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.packages.header import SUFFIX
from lora_core.adapters.packages.seal import SigningKey
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.durable import storage_errors
from lora_core.bundle.paths import STATE
from lora_core.bundle.store import open_bundle
from lora_core.errors import UsageError
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.pipeline.packing import PackedAdapter, pack_stored
from lora_core.pipeline.remove import remove

if TYPE_CHECKING:
    from lora_core.hub import PluginHub

APP, PACKAGES = "app", "packages"
_STAGE = "Pack adapters"


@attrs.frozen(kw_only=True)
class Shipment:
    """What was written: `app` is the bundle without its adapters, `packages` are in the order of the adapters."""

    app: Bundle
    packages: tuple[PackedAdapter, ...]


def ship(path: Path, out: Path, *, key: Path | None, emit: Emit, hub: PluginHub) -> Shipment:
    """Split the bundle at `path` into the empty or new directory `out`; see `lora_core.ship`."""
    signing = None if key is None else SigningKey.read(key)
    bundle = open_bundle(path, emit)
    backend = hub.backend(hub.spec_of(bundle).name, check_requirements=False)
    entries = bundle.manifest.adapters
    with storage_errors("write", out):
        out.mkdir(parents=True, exist_ok=True)
        if next(out.iterdir(), None) is not None:
            raise UsageError(f"{str(out)!r} is not empty.", remedy="Choose another directory.")
        try:
            (out / PACKAGES).mkdir()
            packages = []
            with stage(emit, _STAGE):
                for done, entry in enumerate(entries, start=1):
                    target = out / PACKAGES / f"{entry.name}{SUFFIX}"
                    packages.append(pack_stored(bundle, backend, entry, target, signing))
                    emit(StageAdvanced(stage=_STAGE, done=done, total=len(entries)))
            shutil.copytree(path, out / APP, ignore=shutil.ignore_patterns(STATE))
            names = [entry.name for entry in entries]
            app = remove(out / APP, names, emit=emit, hub=hub) if names else open_bundle(out / APP, emit)
        except BaseException:
            for written in (out / PACKAGES, out / APP):
                shutil.rmtree(written, ignore_errors=True)
            raise
    return Shipment(app=app, packages=tuple(packages))
