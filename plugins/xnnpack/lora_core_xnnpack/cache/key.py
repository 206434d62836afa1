"""What a lowered program depends on beside its weights: the key of its cache entry."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import attrs

from lora_core.backend import ExportJob
from lora_core.models.base import BaseModel
from lora_core_xnnpack.cache.store import SCHEMA_VERSION

_DISTRIBUTIONS = ("lora-core", "lora-core-xnnpack", "executorch", "torch", "torchao", "numpy", "flatbuffers")


def cache_key(job: ExportJob, base: BaseModel) -> str:
    """Return the SHA-256 hex that names a job's cache entry; the weights of `base` need not be there.

    Layer shapes, architecture, policy, options, plans, metadata and versions go into it; weights and adapters do not.
    """
    content = {
        "schema": SCHEMA_VERSION,
        "family": base.summary.family,
        "config": base.summary.config,
        "layers": [attrs.asdict(layer) for layer in base.summary.layers],
        "paths": dict(base.paths),
        "tensors": {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in base.module.state_dict().items()},
        "policy": attrs.asdict(job.policy),
        "options": {name: value for name, value in attrs.asdict(job.options).items() if name != "adapter_data"},
        "plans": [attrs.asdict(plan) for plan in job.plans],
        "metadata": dict(base.metadata),
        "versions": {name: version(name) for name in _DISTRIBUTIONS},
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
