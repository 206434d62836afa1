"""A tiny checkpoint, adapters for it and export jobs, for the tests of the XNNPACK plugin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.peft import PeftFormat
from lora_core.adapters.slots import SlotPlan
from lora_core.backend import ExportJob
from lora_core.models.base import ModelHandle
from lora_core.quant.policies import POLICIES, parse_policy
from lora_core.testing.tiny import write_tiny_adapter
from lora_core_xnnpack.options import XnnpackOptions

POLICY_REGISTRY = {policy.name: policy for policy in POLICIES}
TINY_OPTIONS = XnnpackOptions(max_context_len=32, max_seq_len=16)


@attrs.frozen(kw_only=True)
class Workbench:
    """A tiny checkpoint, adapters made for it on demand, and exports of it."""

    root: Path
    handle: ModelHandle

    def adapter(self, name: str, *, seed: int, **shape: object) -> Adapter:
        """Write an adapter called `name` (`write_tiny_adapter`'s arguments) and read it back."""
        directory = write_tiny_adapter(self.root / "adapters" / f"{name}-{seed}", seed=seed, **shape)  # type: ignore[arg-type]
        return PeftFormat().read(name, directory, self.handle.summary)

    def job(
        self,
        adapters: Sequence[Adapter],
        *,
        policy: str = "fp32",
        embedding: str | None = None,
        options: XnnpackOptions = TINY_OPTIONS,
        plans: tuple[SlotPlan, ...] | None = None,
    ) -> ExportJob:
        """Return an export job with the union plan of `adapters`, or with `plans`."""
        union = (SlotPlan.from_adapters(adapters, self.handle.summary.layers),) if adapters else ()
        return ExportJob(
            model=self.handle,
            adapters=tuple(adapters),
            plans=union if plans is None else plans,
            policy=parse_policy(policy, POLICY_REGISTRY, embedding=embedding),
            options=options,
        )
