"""What a lowered program depends on beside its weights: the name under which it is kept."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import attrs

from lora_core.backend import ExportJob
from lora_core.template_cache.storage import STORAGE_VERSION


def template_identity(
    job: ExportJob, lowered: Mapping[str, object], distributions: Sequence[str], *, after: Sequence[str] = ()
) -> str | None:
    """Return the SHA-256 hex that names the lowered programs of `job`; None if the base is the caller's own module,
    whose code no name can tell.

    Architecture, layers, policy, options, plans and the versions of `distributions` go into it, and `lowered`: what the
    backend knows of the module that it lowers (shapes, metadata). Weights and adapters do not, nor the options named
    in `after`, which only matter once a program is lowered.
    """
    summary = job.model.summary
    if summary.family == "module":
        return None
    content = {
        "schema": STORAGE_VERSION,
        "family": summary.family,
        "config": summary.config,
        "layers": [attrs.asdict(layer) for layer in summary.layers],
        "policy": attrs.asdict(job.policy),
        "options": {name: value for name, value in attrs.asdict(job.options).items() if name not in after},
        "plans": [attrs.asdict(plan) for plan in job.plans],
        "lowered": lowered,
        "versions": {name: version(name) for name in distributions},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    return hashlib.sha256(json.dumps(_plain(content), sort_keys=True).encode("utf-8")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else repr(value)
