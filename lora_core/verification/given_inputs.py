"""A module that takes no tokens against itself before it was lowered, on inputs that the caller gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import place_alone
from lora_core.events import Emit
from lora_core.limits import Limits
from lora_core.models.base import ModelHandle, ModelOptions
from lora_core.models.reference_model import ReferenceModel
from lora_core.runtime.given_inputs import GivenInputsSession, Inputs, flat
from lora_core.runtime.session import Session
from lora_core.verification.measuring import Bench

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class GivenInputsReference(ReferenceModel):
    """The caller's module in float32 with LoRA injected; token i stands for the inputs of call i."""

    def __init__(self, model: ModelHandle, adapters: Sequence[Adapter], inputs: Inputs) -> None:
        self._base = model.load(ModelOptions())
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._inputs = inputs

    @property
    def name(self) -> str:
        """Name it, with torch's version."""
        import torch

        return f"the module itself (torch {torch.__version__}), float32"

    def logits(self, adapter: str | None, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the outputs of each call that `tokens` number, a row for each."""
        import numpy as np
        import torch

        with self._adapted(adapter) as module, torch.no_grad():
            return np.stack([_outputs(module, self._inputs[token]) for token in tokens])

    def continuation(self, adapter: str | None, prompt: Sequence[int], count: int) -> tuple[int, ...]:  # noqa: ARG002 - nothing is generated
        """Return call numbers, which nobody asks for: outputs of a call continue nothing."""
        return (0,) * count

    @contextmanager
    def _adapted(self, adapter: str | None) -> Iterator[Any]:
        from lora_core.models.injection import eject, inject

        module = self._base.module
        if adapter is None:
            yield module
            return
        (placed,) = place_alone([self._adapters[adapter]], self._base.summary.layers)
        inject(module, placed.plan, self._base.paths, placed.values_by_module())
        try:
            yield module
        finally:
            eject(module)


def _outputs(module: Any, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
    import torch
    from torch.utils._pytree import tree_leaves

    found = module(*(torch.as_tensor(each) for each in inputs))
    return flat([leaf.float().numpy() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)])


def bench_of_inputs(
    session: Session, model: ModelHandle, adapters: Sequence[Adapter], inputs: Inputs, limits: Limits, emit: Emit
) -> Bench:
    """Return where the methods of `session` are compared with `model` itself, each on every one of `inputs`."""
    return Bench(
        session=GivenInputsSession(session, inputs),
        reference=GivenInputsReference(model, adapters, inputs),
        prompts=[(index,) for index in range(len(inputs))],
        tokens=1,
        limits=limits_of_outputs(limits),
        adapters={adapter.name: adapter for adapter in adapters},
        emit=emit,
        remembers=False,
    )


def limits_of_outputs(limits: Limits) -> Limits:
    """Return `limits` for outputs of any meaning: errors in units of their spread, no choices among tokens.

    A divergence of s²/2 is what an error of s spreads makes of logits, so its limit says how large that may be.
    """
    allowed = limits.mean_error if limits.mean_error is not None else (2 * limits.kl) ** 0.5
    return attrs.evolve(limits, mean_error=allowed, kl=float("inf"), top1=0.0, greedy=0.0)
