"""What an export was asked for: one value from the command line or the library face to the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.reference import AdapterReference
from lora_core.models.base import ModelHandle
from lora_core.pipeline.slotting import PlanKind
from lora_core.quant.policy import QuantPolicy


@attrs.frozen(kw_only=True)
class ExportRequest:
    """The arguments of `lora_core.export`, which documents them. `policy=None` is the backend's first."""

    model: str | Path | ModelHandle
    backend: str
    adapters: Mapping[str, str | Path] | Sequence[AdapterReference] = ()
    policy: str | QuantPolicy | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    plan: PlanKind = "union"
    max_rank: int | None = None
    targets: str | Sequence[str] | None = None
    group_size: int | None = None
    embedding: str | None = None
    head: str | None = None
    adapter_dtype: str | None = None
    compact_tokenizer: bool = False
    cache: Path | None = None
    download: bool = False
    source: str | None = None
