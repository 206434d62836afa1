# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Derive a program from lowerings of a few of its layers, and prove the derivation on one that is deeper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from executorch.exir.schema import Program

from lora_core.adapters.slots.plan import SlotPlan
from lora_core_xnnpack.stamping import image, sample
from lora_core_xnnpack.stamping.elements import Elements, Lists, NotStampableError, TooFewLayersError
from lora_core_xnnpack.stamping.keys import Texts
from lora_core_xnnpack.stamping.kinds import Run, kinds, runs
from lora_core_xnnpack.stamping.lowerings import LOWERING, Advanced, Layers, Methods, ShallowModels, SharedTrace, cost
from lora_core_xnnpack.stamping.sample import Sample
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.stamping.stretching import Stretch

# What spans two layers (a delegate does) is there once in two layers, and before its copy in three. Where the first two
# are irregular (one of them reads the embedding), what is regular comes later.
_STARTS = (2, 3, 4)
_FEWEST = 6  # layers that cost no more than the models of two, three and four from which all follows if all are alike
_MOST_DETAIL = 2


@attrs.frozen(kw_only=True)
class Stamped:
    """The lists of a deep program, and a shallow program for what is in no list.

    `cut` says that it was derived from models that were cut out of a shared trace.
    """

    like: Program
    lists: Lists
    cut: bool

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


def deepest(base: LayeredBase, plans: Sequence[SlotPlan]) -> Layers:
    """Return the layers of the deepest model that `stamp` lowers at first; raises what it raises before that."""
    return _first(base, plans).choices[-1]


def stamp(
    base: LayeredBase,
    plans: Sequence[SlotPlan],
    methods: Methods,
    advanced: Advanced = lambda _done, _total: None,
    shared: SharedTrace | None = None,
) -> Stamped:
    """Derive the program of the whole model; its models are cut out of `shared` where they can be.

    Raises `NotStampableError` if its layers do not repeat or the derivation does not prove itself, `TooFewLayersError`
    if a full lowering lowers no more layers than the derivation would.
    """
    attempt = _first(base, plans)
    depth = len(base.layers)
    lowering = ShallowModels(base, plans, methods, advanced, shared)
    for start in _STARTS:
        attempt = _Attempt.of(attempt.runs, start)
        if start > _STARTS[0] and not (attempt.stretched and lowering.affords(attempt.choices, depth)):
            break
        try:
            return attempt.stamp(lowering)
        except _NotYetError as error:
            reason = str(error)
        if lowering.is_cut(attempt.choices):
            try:  # the cut may be to blame
                return attempt.stamp(lowering.for_itself())
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
    if cost(attempt.choices) >= LOWERING * len(found):
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
                lists[name], stretch = _predict(name, shallow, one_more, proof, self.start, more, used)
                if kind == image.VALUES:
                    values[method] = stretch
        except NotStampableError as error:
            raise _NotYetError(str(error)) from error
        return Stamped(like=shallow.program, lists=lists, cut=lowering.is_cut(self.choices))

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
    start: int,
    more: Sequence[int],
    values: Stretch | None,
) -> tuple[Elements, Stretch]:
    """Return a list with `more` units of each run than the `start` of `shallow`, derived so that it also predicts that
    of `proof`, and how.

    With `values`, references to them go by constants, or else where these go.
    """
    reason = NotStampableError(f"one more layer adds {name}")
    for detail in range(_MOST_DETAIL + 1):
        try:
            deeper = [each.lists[name] for each in one_more]
            stretch = Stretch.derive(name, shallow.lists[name], deeper, repeats=start, detail=detail)
        except (NotStampableError, KeyError) as error:
            reason = error if isinstance(error, NotStampableError) else reason
            continue
        for followed in (None,) if values is None else (None, values):
            if stretch.predict([2] * len(more), followed) == proof.lists.get(name):
                return stretch.predict(more, followed), stretch
        reason = NotStampableError(f"the {name} of a deeper model are not what those of shallower ones predict")
    raise reason
