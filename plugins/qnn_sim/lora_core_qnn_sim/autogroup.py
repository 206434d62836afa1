"""Automatic grouping: the fewest groups whose members, sharing encodings, lose no more than a limit.

The loss of an adapter in a group is the SQNR of its logits under its own encodings less that under the group's, both
against a floating-point run of the same quantized base with the adapter's real weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core_qnn_sim.artifacts.context_binary import ContextBinary
from lora_core_qnn_sim.artifacts.foundation import FoundationBinary
from lora_core_qnn_sim.calibrate.calibrate import quantized_base, shared_encodings
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.grouping import Group
from lora_core_qnn_sim.lora import quantize_lora, real_lora
from lora_core_qnn_sim.runtime.executor import Executor
from lora_core_qnn_sim.runtime.floating import FloatRun
from lora_core_qnn_sim.runtime.kernels import ALPHA
from lora_core_qnn_sim.runtime.kv_cache import QuantizedKvCache

Array = npt.NDArray[Any]
EXACT_LIMIT = 8
_PROMPTS = 4
Loss = Callable[[frozenset[str]], Mapping[str, float]]


@attrs.frozen(kw_only=True)
class GroupRow:
    """One line of the table: an adapter, its group, and its SQNR in dB under its own and the shared encodings."""

    group: str
    adapter: str
    own: float
    shared: float

    @property
    def drop(self) -> float:
        """How many dB sharing costs; negative if it helps."""
        return self.own - self.shared


@attrs.frozen(kw_only=True)
class AutoGrouping:
    """Groups found, the table behind them, and whether no partition into fewer groups exists."""

    groups: tuple[Group, ...]
    rows: tuple[GroupRow, ...]
    proven_fewest: bool

    def table(self) -> str:
        """Return the table as text."""
        lines = [f"{'group':<10} {'adapter':<20} {'own SQNR':>9} {'shared':>9} {'drop':>7}"]
        lines += [
            f"{row.group:<10} {row.adapter:<20} {row.own:>6.2f} dB {row.shared:>6.2f} dB {row.drop:>4.2f} dB"
            for row in self.rows
        ]
        if not self.proven_fewest:
            lines.append(f"(more than {EXACT_LIMIT} adapters: merged greedily, fewer groups may exist)")
        return "\n".join(lines)


def sqnr(reference: Array, values: Array) -> float:
    """Return the signal-to-quantization-noise ratio in dB."""
    noise = float(np.square(reference - values).sum())
    signal = float(np.square(reference).sum())
    return 10.0 * float(np.log10(signal / max(noise, 1e-300)))


@attrs.define(kw_only=True, eq=False)
class Meter:
    """Measures SQNR of adapters under given encodings, on a few calibration prompts."""

    context: ContextBinary
    foundation: FoundationBinary
    own: Mapping[str, Mapping[str, Encoding]]
    _real: dict[str, dict[str, Array]] = attrs.field(factory=dict, init=False)
    _reference: dict[str, Array] = attrs.field(factory=dict, init=False)

    def add(self, placed: PlacedAdapter) -> None:
        """Prepare an adapter: its weights and its floating-point logits."""
        spec, base = self.context.spec, self.foundation.base
        real = real_lora(spec, [placed], self.foundation.basis)
        wide = {name: array.astype(np.float64) for name, array in real.items()}
        run = FloatRun(spec=spec, weight=quantized_base(base), base=base, lora=wide)
        self._real[placed.name] = real
        self._reference[placed.name] = np.concatenate(run.logits(self.foundation.prompts[:_PROMPTS]))

    def measure(self, name: str, encodings: Mapping[str, Encoding]) -> float:
        """Return the SQNR of adapter `name` under `encodings`."""
        spec = self.context.spec
        whole = self.foundation.with_slots(spec) | dict(encodings)
        lora = quantize_lora(spec, self._real[name], whole)
        executor = Executor(spec=spec, base=self.foundation.base, encodings=whole, lora=lora)
        alphas = ALPHA.quantize(np.ones(spec.alphas))
        grid = whole[spec.dims.logits]
        logits = [
            grid.dequantize(executor.run(prompt, 0, QuantizedKvCache.empty(spec), alphas, last_only=False))
            for prompt in self.foundation.prompts[:_PROMPTS]
        ]
        return sqnr(self._reference[name], np.concatenate(logits))

    def shared(self, members: frozenset[str]) -> dict[str, float]:
        """Return the SQNR of every member under the encodings that `members` would share."""
        together = shared_encodings(self.own[name] for name in sorted(members))
        return {name: self.measure(name, together) for name in sorted(members)}


def auto_group(
    context: ContextBinary,
    foundation: FoundationBinary,
    adapters: Sequence[PlacedAdapter],
    own: Mapping[str, Mapping[str, Encoding]],
    limit: float,
) -> AutoGrouping:
    """Return the fewest groups in which no adapter loses more than `limit` dB.

    Up to `EXACT_LIMIT` adapters every partition into fewer groups has been ruled out; beyond, groups are merged
    greedily and the result says so.
    """
    meter = Meter(context=context, foundation=foundation, own=own)
    for placed in adapters:
        meter.add(placed)
    alone = {name: meter.measure(name, encodings) for name, encodings in own.items()}
    measured: dict[frozenset[str], Mapping[str, float]] = {frozenset({name}): {name: alone[name]} for name in own}

    def feasible(members: frozenset[str]) -> bool:
        if members not in measured:
            measured[members] = meter.shared(members)
        return all(alone[name] - value <= limit for name, value in measured[members].items())

    names = sorted(own)
    exact = len(names) <= EXACT_LIMIT
    parts = fewest(names, feasible) if exact else greedy(names, feasible)
    groups = tuple(Group(name=f"group{i}", members=tuple(sorted(part))) for i, part in enumerate(parts, 1))
    rows = tuple(
        GroupRow(group=group.name, adapter=name, own=alone[name], shared=measured[frozenset(group.members)][name])
        for group in groups
        for name in group.members
    )
    return AutoGrouping(groups=groups, rows=rows, proven_fewest=exact)


def fewest(names: Sequence[str], feasible: Callable[[frozenset[str]], bool]) -> list[frozenset[str]]:
    """Return a partition of `names` into the least number of feasible sets; sets of one must be feasible."""
    for count in range(1, len(names) + 1):
        for parts in _partitions(list(names), count):
            if all(feasible(part) for part in parts):
                return parts
    return []


def greedy(names: Sequence[str], feasible: Callable[[frozenset[str]], bool]) -> list[frozenset[str]]:
    """Put each name into the first set that stays feasible, or into one of its own."""
    parts: list[frozenset[str]] = []
    for name in names:
        for index, part in enumerate(parts):
            if feasible(part | {name}):
                parts[index] = part | {name}
                break
        else:
            parts.append(frozenset({name}))
    return parts


def _partitions(names: list[str], count: int) -> Iterator[list[frozenset[str]]]:
    if count == 0:
        if not names:
            yield []
        return
    if len(names) < count:
        return
    first, rest = names[0], names[1:]
    for chosen in range((1 << len(rest)) - 1, -1, -1):
        part = frozenset([first, *(name for i, name in enumerate(rest) if chosen >> i & 1)])
        others = [name for name in rest if name not in part]
        for parts in _partitions(others, count - 1):
            yield [part, *parts]
