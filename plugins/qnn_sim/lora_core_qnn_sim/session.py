"""A bundle opened on the simulated runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.bundle.bundle import Bundle
from lora_core.errors import UsageError
from lora_core.runtime.selection import Selection
from lora_core.runtime.session import Loaded, Session
from lora_core.runtime.strengths import Strengths
from lora_core_qnn_sim.artifacts import CONTEXT, FOUNDATION
from lora_core_qnn_sim.runtime.context import Applied, SimulatedContext
from lora_core_qnn_sim.runtime.selection import alphas_of, single_of


class QnnSimSession(Session):
    """One context for all adapters; switching applies sections, or sets the alpha vector of a hot-switch context.

    An adapter is named as `pirate`, at a strength as `pirate@0.5`, and in a hot-switch context several at once as
    `pirate:0.7+json:0.3`; strengths are the alpha vector and lie in 0..2. A change of adapter or strength clears the KV
    cache, so the first tokens after it must start at position 0.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Load foundation and context binary of `bundle`."""
        self._bundle = bundle
        self._context = SimulatedContext.create(bundle.file(CONTEXT), bundle.file(FOUNDATION))
        self._cache = self._context.new_cache()
        self._io = self._context.read_io_encodings()
        self._current: str | None = None
        self._selection = Selection.parse(None)
        self._strengths = Strengths()
        self._switched: list[Applied] = []

    @property
    def bundle(self) -> Bundle:
        """The bundle that is open."""
        return self._bundle

    @property
    def context(self) -> SimulatedContext:
        """The context underneath, for its rules and reports."""
        return self._context

    @property
    def facts(self) -> Mapping[str, Any]:
        """What this runtime is: a simulator that executes integer grids, and what the last switch cost."""
        spec = self._context.binary.spec
        facts: dict[str, Any] = {
            "runtime": "simulator of QNN-style sections on the CPU; not the vendor's runtime",
            "evaluates": "executes the integer grids of the encodings, exactly",
            "mode": "hot switch" if self._context.binary.hot_switch else self._context.binary.mode,
            "activation bits": spec.act_bits,
            "context_len": spec.context_len,
            "numpy": version("numpy"),
        }
        if self._switched:
            facts["last switch"] = {
                "adapter": self._current or "base",
                "sections": len(self._switched),
                "weight bytes": sum(applied.weight_bytes for applied in self._switched),
                "encoding bytes": sum(applied.encoding_bytes for applied in self._switched),
                "seconds": sum(applied.seconds for applied in self._switched),
            }
        return facts

    def load(self, adapter: str | None) -> Loaded:
        """Apply the sections of `adapter` (None: the zero section); loading the current one again is free.

        Another strength of the applied adapter needs no section, only another alpha vector.
        """
        start = time.perf_counter()
        adapter = self._strengths.applied(adapter)
        if adapter != self._current:
            self._select(Selection.parse(adapter))
            self._current = adapter
            self._io = self._context.read_io_encodings()
            self._cache.reset()
        return Loaded.measured(adapter, time.perf_counter() - start)

    def strength(self, adapter: str, strength: float) -> None:
        """Let `adapter` have a strength from now on: its alpha; raises `UsageError` for one that alphas cannot be."""
        members = self._context.binary.adapters
        told = Strengths(own=dict(self._strengths.own))
        told.set(adapter, strength, {*members, *self._bundle.manifest.names}, str(self._bundle.path))
        self._context.check_alphas(alphas_of(Selection.parse(told.applied(adapter)), members))
        self._strengths = told

    def reset(self) -> None:
        """Forget the KV cache."""
        self._cache.reset()

    def step(self, adapter: str | None, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:
        """Feed `tokens`, in chunks of the static graphs, and return the last one's logits.

        Several tokens go through the prefill graph, padded to its length; single ones through the decode graph.
        """
        if not tokens:
            raise UsageError("There are no tokens to feed")
        self.load(adapter)
        if position == 0:
            self._cache.reset()
        length = self._context.binary.spec.input_len
        logits = np.zeros((0, 0), np.uint16)
        for begin in range(0, len(tokens), length):
            chunk = np.asarray(tokens[begin : begin + length], np.int64)
            logits = self._execute(chunk, position + begin)
        grid = self._io.logits
        return grid.dequantize(logits[-1].astype(np.float64) + grid.offset).astype(np.float32)

    def close(self) -> None:
        """Unload the graph and release what was computed from its weights."""
        if self._context.loaded:
            self._context.unload()
            self._context.foundation.base.forget()

    def _execute(self, chunk: npt.NDArray[np.int64], position: int) -> npt.NDArray[np.uint16]:
        count, length = len(chunk), self._context.binary.spec.input_len
        graph: Any = "decode" if count == 1 else "prefill"
        padded = chunk if graph == "decode" else np.pad(chunk, (0, length - count))
        return self._context.execute(
            graph, padded, valid=count, position=position, cache=self._cache, io=self._io, alphas=self._alphas()
        )

    def _alphas(self) -> list[float]:
        return alphas_of(self._selection, self._context.binary.adapters)

    def _select(self, selection: Selection) -> None:
        members = self._context.binary.adapters
        names = self._bundle.manifest.names
        # The members of a concurrency need not be adapters of the manifest.
        selection.require_known({*members, *names} if members else names)
        self._context.check_alphas(alphas_of(selection, members))
        if not members and single_of(selection) != single_of(self._selection):
            self._switched = self._apply(single_of(selection))
        else:
            self._switched = []
        self._selection = selection

    def _apply(self, adapter: str | None) -> list[Applied]:
        if adapter is None:
            default = self._bundle.manifest.detail["default"]
            return [self._context.apply(self._bundle.file(default))]
        record = self._bundle.record(adapter)
        assert record is not None, "the selection is of known adapters"
        detail = record.adapter.detail
        sections = detail["sections"]
        if "combined" in sections:
            return [self._context.apply(self._bundle.file(sections["combined"]))]
        applied = []
        if self._context.encodings_id != detail["encodings_id"]:
            applied.append(self._context.apply(self._bundle.file(detail["encodings"])))
        return [*applied, self._context.apply(self._bundle.file(sections["weights"]))]
