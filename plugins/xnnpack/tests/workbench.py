"""A tiny checkpoint, adapters for it and export jobs, for the tests of the XNNPACK plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from lora_core_xnnpack.options import XnnpackOptions
from lora_core_xnnpack.policies import POLICIES as OWN_POLICIES

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.choice import place
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.layers import ModelSummary
from lora_core.models.base import BaseModel, ModelHandle, ModelOptions, TokenizerFiles
from lora_core.models.hf import HfModelSource
from lora_core.quant.policies import POLICIES, parse_policy
from lora_core.tensors import LazyTensor
from lora_core.testing.tiny import TINY_LLAMA, write_tiny_adapter, write_tiny_checkpoint

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
POLICY_REGISTRY = {policy.name: policy for policy in (*POLICIES, *OWN_POLICIES)}
TINY_OPTIONS = XnnpackOptions(max_context_len=32, max_seq_len=16)


@attrs.frozen(kw_only=True)
class Whole(ModelHandle):
    """A base that its source gives only whole, so that it is lowered with its own weights."""

    handle: ModelHandle

    @property
    def summary(self) -> ModelSummary:
        return self.handle.summary

    @property
    def tokenizer(self) -> TokenizerFiles | None:
        return self.handle.tokenizer

    def tensors(self) -> Mapping[str, LazyTensor]:
        return self.handle.tensors()

    def load(self, options: ModelOptions) -> BaseModel:
        return self.handle.load(options)


@attrs.frozen(kw_only=True)
class Workbench:
    """A tiny checkpoint of `layers` blocks, adapters made for it on demand, and export jobs."""

    root: Path
    layers: int
    checkpoint: Path
    handle: ModelHandle

    @classmethod
    def make(cls, root: Path, *, layers: int, seed: int = 0) -> Workbench:
        """Write a random checkpoint under `root`."""
        config = {**TINY_LLAMA, "num_hidden_layers": layers}
        checkpoint = write_tiny_checkpoint(root / f"model-{layers}-{seed}", seed=seed, config=config)
        return cls(root=root, layers=layers, checkpoint=checkpoint, handle=HfModelSource().open(str(checkpoint)))

    def adapter(
        self,
        name: str,
        *,
        seed: int,
        rank: int = 4,
        alpha: float = 8.0,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        zero: Sequence[str] = (),
    ) -> Adapter:
        """Write a random adapter called `name` and read it back."""
        directory = self.root / "adapters" / f"{name}-{self.layers}"
        config = {**TINY_LLAMA, "num_hidden_layers": self.layers}
        write_tiny_adapter(directory, seed=seed, rank=rank, alpha=alpha, targets=targets, zero=zero, config=config)
        return PeftFormat().read(name, directory, self.handle.summary)

    def job(
        self,
        adapters: Sequence[Adapter],
        *,
        policy: str = "fp32",
        embedding: str | None = None,
        plans: tuple[SlotPlan, ...] | None = None,
        cache: Path | None = None,
    ) -> ExportJob:
        """Return an export job with the union plan of `adapters`, or with `plans`."""
        union = (SlotPlan.from_adapters(adapters, self.handle.summary.layers),) if adapters else ()
        given = union if plans is None else plans
        return ExportJob(
            model=self.handle,
            adapters=place(adapters, given),
            plans=given,
            policy=parse_policy(policy, POLICY_REGISTRY, embedding=embedding),
            options=TINY_OPTIONS,
            cache=cache,
        )
