"""Open: a bundle on its backend's runtime, told what the caller says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.events import ignore
from lora_core.pipeline.soundness import blaming_damage
from lora_core.pipeline.undisturbed import undisturbed

if TYPE_CHECKING:
    from lora_core.bundle.bundle import Bundle
    from lora_core.hub import PluginHub
    from lora_core.runtime.session import Session


def open_session(path: Path, options: Mapping[str, Any], *, hub: PluginHub) -> Session:
    """Open the bundle at `path`; `lora_core.open` documents arguments and errors."""

    def opened(bundle: Bundle) -> Session:
        name = hub.spec_of(bundle).name
        told = hub.session_options(name, options)
        with blaming_damage(bundle):
            return hub.backend(name).open(bundle, told)

    return undisturbed(path, ignore, opened, forget=lambda session: session.close())
