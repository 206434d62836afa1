"""Lowerings of a few layers: each is traced, or cut out of what is traced already."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.models.base import BaseModel
from lora_core_xnnpack.stamping.sample import Sample, Traced
from lora_core_xnnpack.stamping.shallow import LayeredBase

# Parts of what lowering a layer takes.
_TRACING, _DELEGATING = 3, 1
LOWERING = _TRACING + _DELEGATING

Layers = tuple[int, ...]
"""Numbers of layers of the base."""

Advanced = Callable[[int, int], None]
"""Is told how much is done of how much there is to do."""


class Methods(Protocol):
    """Makes the methods of a shallow model, with its plans, and traces them."""

    def __call__(self, model: BaseModel, plans: Sequence[SlotPlan]) -> Traced:
        """Return what `Traced.of` does."""
        ...


class SharedTrace:
    """One method of a model of the layers `layers` with slots, traced when it is asked for: those of fewer layers, and
    the base's, are cut out of it.

    `proven` is set when the base's program was derived from such cuts and from a model that was traced for itself.
    """

    def __init__(self, base: LayeredBase, plan: SlotPlan, layers: Layers, methods: Methods) -> None:
        self._base, self._plans, self.layers, self._methods = base, (plan,), layers, methods
        self._traced: Traced | None = None
        self.proven = False

    def has(self, keep: Layers, plans: Sequence[SlotPlan]) -> bool:
        """Say whether the model of the layers `keep` with `plans` may be cut out: none, or that which is traced."""
        return set(keep) <= set(self.layers) and (not plans or (tuple(plans) == self._plans and keep == self.layers))

    def take(self, plans: Sequence[SlotPlan]) -> Traced | None:
        """Return the model of all layers with the plan that is traced, or without: None if that cannot be cut out.

        The one with slots is the trace itself, which nobody can take anything of afterwards.
        """
        traced = self._traced or traced_model(self._base, self._plans, self.layers, self._methods)
        self._traced = None if plans else traced
        return traced if plans else traced.bare()


class ShallowModels:
    """The shallow models of one program, lowered when they are asked for, once each."""

    def __init__(
        self,
        base: LayeredBase,
        plans: Sequence[SlotPlan],
        methods: Methods,
        advanced: Advanced,
        shared: SharedTrace | None,
    ) -> None:
        self._base, self._plans, self._methods, self._advanced = base, plans, methods, advanced
        self._shared = shared
        self._traced: dict[Layers, Sample] = {}
        self._cut: dict[Layers, Sample] = {}
        self._done = self._planned = 0

    def affords(self, choices: Sequence[Layers], depth: int) -> bool:
        """Say whether it takes less than lowering `depth` layers, all in all, if `choices` are lowered too."""
        return self._planned + cost(choices) < LOWERING * depth

    def is_cut(self, choices: Sequence[Layers]) -> bool:
        """Say whether the deepest of `choices` was cut out of a shared trace."""
        return choices[-1] in self._cut

    def for_itself(self) -> ShallowModels:
        """Forget what was cut, and what it may be cut out of; return this."""
        self._shared = None
        self._cut.clear()
        return self

    def samples(self, choices: Sequence[Layers]) -> list[Sample]:
        """Lower the models of the layers `choices`.

        The first and the last, which has all layers of the others, are traced; the others are cut out of the last where
        they can be. What a cut kept of the deeper graph by mistake would make both ends disagree. The last may be cut
        out of a shared trace in turn; once that is proven, all may.
        """
        first, *between, last = choices
        shared = self._shared if self._shared is not None and self._shared.has(last, self._plans) else None
        proven = shared is not None and shared.proven
        self._planned += cost(choices, traced=() if proven else (first, last))
        if not proven and first not in self._traced:
            self._traced[first] = self._sample(first, self._trace(first))
        taken = shared.take(self._plans) if shared is not None else None
        source, layers = (taken, shared.layers) if taken and shared else (self._trace(last), last)
        for keep in (first, *between) if proven else between:
            if keep not in self._traced and keep not in self._cut:
                self._lower(keep, source, layers)
        if layers == last:
            (self._traced if taken is None or self._plans else self._cut)[last] = self._sample(last, source)
        else:
            self._lower(last, source, layers)
        del taken, source
        self._advance(self._planned - self._done)  # what was known from an attempt before
        return [self._traced[keep] if keep in self._traced else self._cut[keep] for keep in choices]

    def _lower(self, keep: Layers, source: Traced, layers: Layers) -> None:
        """Lower the model of the layers `keep`, cut out of `source`, which has `layers`, if it can be."""
        cut = source.shortened(self._base.blocks, [layers.index(number) for number in keep])
        known, traced = (self._traced, self._trace(keep)) if cut is None else (self._cut, cut)
        known[keep] = self._sample(keep, traced)

    def _trace(self, keep: Layers) -> Traced:
        traced = traced_model(self._base, self._plans, keep, self._methods)
        self._advance(_TRACING * len(keep))
        return traced

    def _sample(self, keep: Layers, traced: Traced) -> Sample:
        sample = traced.sample(self._base.weights.known)
        gc.collect()  # graphs are cyclic, and hold the weights
        self._advance(_DELEGATING * len(keep))
        return sample

    def _advance(self, parts: int) -> None:
        done = min(self._done + parts, self._planned)  # what cannot be cut takes longer
        if done > self._done:
            self._done = done
            self._advanced(done, self._planned)


def cost(choices: Sequence[Layers], traced: Collection[Layers] | None = None) -> int:
    """Return what it takes to lower models of the layers `choices` of which some are `traced`: the first and the last,
    if nothing else is said.
    """
    tracing = sum(map(len, (choices[0], choices[-1]) if traced is None else traced))
    return _TRACING * tracing + _DELEGATING * sum(map(len, choices))


def traced_model(base: LayeredBase, plans: Sequence[SlotPlan], keep: Layers, methods: Methods) -> Traced:
    """Trace the methods of the model of the layers `keep` with what `plans` are there."""
    return methods(base.cut(keep), [base.cut_plan(plan, keep) for plan in plans])
