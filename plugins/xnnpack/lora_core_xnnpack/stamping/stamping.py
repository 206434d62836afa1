# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Derive a program from lowerings of a few of its layers, and prove the derivation on one that is deeper."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs
from executorch.exir.schema import Program

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.models.base import BaseModel
from lora_core_xnnpack.stamping import image, sample
from lora_core_xnnpack.stamping.elements import Elements, Lists, NotStampableError, TooFewLayersError
from lora_core_xnnpack.stamping.keys import Texts
from lora_core_xnnpack.stamping.kinds import Run, kinds, runs
from lora_core_xnnpack.stamping.sample import Sample, Traced
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.stamping.stretching import Stretch

# What spans two layers (a delegate does) is there once in two layers, and before its copy in three. Where the first two
# are irregular (one of them reads the embedding), what is regular comes later.
_STARTS = (2, 3, 4)
_FEWEST = 6  # layers that cost no more than the models of two, three and four from which all follows if all are alike
# Parts of what lowering a layer takes.
_TRACING, _DELEGATING = 3, 1
_LOWERING = _TRACING + _DELEGATING
_MOST_DETAIL = 2

Layers = tuple[int, ...]
"""Numbers of layers of the base."""

Advanced = Callable[[int, int], None]
"""Is told how much is done of how much there is to do."""


class Methods(Protocol):
    """Makes the methods of a shallow model, with its plans, and traces them."""

    def __call__(self, model: BaseModel, plans: Sequence[SlotPlan]) -> Traced:
        """Return what `Traced.of` does."""
        ...


class ShallowModels:
    """The shallow models of one program, lowered when they are asked for, once each."""

    def __init__(self, base: LayeredBase, plans: Sequence[SlotPlan], methods: Methods, advanced: Advanced) -> None:
        self._base, self._plans, self._methods, self._advanced = base, plans, methods, advanced
        self._traced: dict[Layers, Sample] = {}
        self._cut: dict[Layers, Sample] = {}
        self._done = self._planned = 0

    def affords(self, choices: Sequence[Layers], depth: int) -> bool:
        """Say whether it takes less than lowering `depth` layers, all in all, if `choices` are lowered too."""
        return self._planned + _cost(choices) < _LOWERING * depth

    def samples(self, choices: Sequence[Layers]) -> list[Sample]:
        """Lower the models of the layers `choices`.

        The first and the last, which has all layers of the others, are traced; the others are cut out of the last where
        they can be. What a cut kept of the deeper graph by mistake would make both ends disagree.
        """
        self._planned += _cost(choices)
        first, *between, last = choices
        deepest = self._trace(last)
        for keep in between:
            if keep not in self._traced and keep not in self._cut:
                cut = deepest.shortened(self._base.blocks, [last.index(number) for number in keep])
                known, traced = (self._traced, self._trace(keep)) if cut is None else (self._cut, cut)
                known[keep] = self._sample(keep, traced)
                del cut, traced
        self._traced[last] = self._sample(last, deepest)
        del deepest
        if first not in self._traced:
            self._traced[first] = self._sample(first, self._trace(first))
        self._advance(self._planned - self._done)  # what was known from an attempt before
        return [self._traced[keep] if keep in self._traced else self._cut[keep] for keep in choices]

    def _trace(self, keep: Layers) -> Traced:
        model = self._base.cut(keep)
        traced = self._methods(model, [self._base.cut_plan(plan, keep) for plan in self._plans])
        self._advance(_TRACING * len(keep))
        return traced

    def _sample(self, keep: Layers, traced: Traced) -> Sample:
        sample = traced.sample()
        gc.collect()  # graphs are cyclic, and hold the weights
        self._advance(_DELEGATING * len(keep))
        return sample

    def _advance(self, parts: int) -> None:
        done = min(self._done + parts, self._planned)  # what cannot be cut takes longer
        if done > self._done:
            self._done = done
            self._advanced(done, self._planned)


def _cost(choices: Sequence[Layers]) -> int:
    """Return what it takes to lower models of the layers `choices`, the first and the last traced."""
    traced, lowered = len(choices[0]) + len(choices[-1]), sum(map(len, choices))
    return _TRACING * traced + _DELEGATING * lowered


@attrs.frozen(kw_only=True)
class Stamped:
    """The lists of a deep program, and a shallow program for what is in no list."""

    like: Program
    lists: Lists

    def build(self, texts: Texts) -> tuple[bytes, dict[str, int]]:
        """Return the program file, and the bytes of memory that each method plans; `texts` gives each key's text.

        Raises `NotStampableError` if ExecuTorch takes no such program.
        """
        try:
            program = image.program(self.like, self.lists, texts)
            return sample.serialize(program), image.planned_memory(program)
        except (AssertionError, IndexError, ValueError) as error:
            raise NotStampableError(f"no program comes of it: {type(error).__name__}: {error}") from error


def check(base: LayeredBase, plans: Sequence[SlotPlan]) -> None:
    """Raise what `stamp` raises before it lowers anything."""
    _first(base, plans)


def stamp(
    base: LayeredBase, plans: Sequence[SlotPlan], methods: Methods, advanced: Advanced = lambda _done, _total: None
) -> Stamped:
    """Derive the program of the whole model.

    Raises `NotStampableError` if its layers do not repeat or the derivation does not prove itself, `TooFewLayersError`
    if a full lowering lowers no more layers than the derivation would.
    """
    attempt = _first(base, plans)
    depth = len(base.layers)
    lowering = ShallowModels(base, plans, methods, advanced)
    for start in _STARTS:
        attempt = _Attempt.of(attempt.runs, start)
        if start > _STARTS[0] and not (attempt.stretched and lowering.affords(attempt.choices, depth)):
            break
        try:
            return attempt.stamp(lowering)
        except _NotYetError as error:
            reason = str(error)
    raise NotStampableError(reason)


def _first(base: LayeredBase, plans: Sequence[SlotPlan]) -> _Attempt:
    found = kinds(base, plans)
    attempt = _Attempt.of(runs(found), _STARTS[0])
    if len(found) <= _FEWEST:
        raise TooFewLayersError(f"{len(found)} layers are few")
    if not attempt.stretched:
        raise NotStampableError("no layers repeat")
    if any(part.table for plan in plans for slot in plan.slots for part in slot.parts):
        raise NotStampableError("a slot's rows are read by a portable kernel")
    if _cost(attempt.choices) >= _LOWERING * len(found):
        raise TooFewLayersError(f"{len(found)} layers are few for so many kinds")
    return attempt


class _NotYetError(Exception):
    """A derivation that may succeed from deeper models."""


@attrs.frozen(kw_only=True)
class _Attempt:
    """A derivation in which runs of layers are shortened to `start` units, and those in `stretched` drawn out again."""

    runs: tuple[Run, ...]
    start: int
    stretched: tuple[int, ...]

    @classmethod
    def of(cls, repeated: tuple[Run, ...], start: int) -> _Attempt:
        """Return the attempt that shortens each run that is longer than the model that proves the derivation."""
        return cls(
            runs=repeated,
            start=start,
            stretched=tuple(number for number, run in enumerate(repeated) if run.repeats > start + 2),
        )

    @property
    def choices(self) -> list[Layers]:
        """The layers of the shallow models: the shallowest, one more unit of each run, two more of all."""
        one_more = [self._layers({number: 1}) for number in self.stretched]
        return [self._layers({}), *one_more, self._layers(dict.fromkeys(self.stretched, 2))]

    def stamp(self, lowering: ShallowModels) -> Stamped:
        """Derive the whole model's program; raises `_NotYetError`."""
        shallow, *one_more, proof = lowering.samples(self.choices)
        more = [self.runs[number].repeats - self.start for number in self.stretched]
        try:
            lists: dict[str, Elements] = {}
            values: dict[str, Stretch] = {}
            for name in shallow.lists:
                method, _, kind = name.rpartition(": ")
                used = values.get(method) if kind == image.INSTRUCTIONS else None
                lists[name], stretch = _predict(name, shallow, one_more, proof, more, used)
                if kind == image.VALUES:
                    values[method] = stretch
        except NotStampableError as error:
            raise _NotYetError(str(error)) from error
        return Stamped(like=shallow.program, lists=lists)

    def _layers(self, more: Mapping[int, int]) -> Layers:
        kept: list[int] = []
        for number, run in enumerate(self.runs):
            kept += run.layers(self.start + more.get(number, 0) if number in self.stretched else run.repeats)
        return tuple(kept)


def _predict(
    name: str,
    shallow: Sample,
    one_more: Sequence[Sample],
    proof: Sample,
    more: Sequence[int],
    values: Stretch | None,
) -> tuple[Elements, Stretch]:
    """Return a list with `more` units of each run, derived so that it also predicts that of `proof`, and how.

    With `values`, references to them go by constants, or else where these go.
    """
    reason = NotStampableError(f"one more layer adds {name}")
    for detail in range(_MOST_DETAIL + 1):
        try:
            stretch = Stretch.derive(name, shallow.lists[name], [each.lists[name] for each in one_more], detail=detail)
        except (NotStampableError, KeyError) as error:
            reason = error if isinstance(error, NotStampableError) else reason
            continue
        for followed in (None,) if values is None else (None, values):
            if stretch.predict([2] * len(more), followed) == proof.lists.get(name):
                return stretch.predict(more, followed), stretch
        reason = NotStampableError(f"the {name} of a deeper model are not what those of shallower ones predict")
    raise reason
