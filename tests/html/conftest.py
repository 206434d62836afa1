"""A bundle as the page sees it, without files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.bundle.bundle import Artifact, Bundle, BundledAdapter, Manifest, Method
from lora_core.layers import ModelSummary


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    fingerprint = "f" * 64
    manifest = Manifest(
        backend="xnnpack",
        base=ModelSummary(name="Tiny-1B", family="llama", layers=(), module_names=(), vocab_size=64),
        policy={"name": "8da4w"},
        foundation=fingerprint,
        plans=(SlotPlan(slots=(Slot(module="q_proj", in_features=8, out_features=8, rank=4),)),),
        options={"layout": "split"},
        versions={"executorch": "1.5.1"},
        artifacts=(
            Artifact(path="foundation.ptd", role="foundation", sha256=fingerprint, size=90_000),
            Artifact(path="base.pte", role="program", sha256="b" * 64, size=5_000),
            Artifact(path="loud.pte", role="program", sha256="c" * 64, size=6_000, adapter="loud"),
        ),
        adapters=(BundledAdapter(name="loud", digest="d" * 64, foundation=fingerprint, rank=4, modules=1),),
        methods=(
            Method(name="forward", program="base.pte"),
            Method(name="loud", program="loud.pte", adapter="loud"),
        ),
    )
    return Bundle(path=tmp_path / "bundle", manifest=manifest)
