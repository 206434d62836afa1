"""A loaded context: applies sections, executes, and enforces the order rules.

The rules are the vendor's published ones; the names of the refusals are the simulator's own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.artifacts.context_binary import ContextBinary, read_context
from lora_core_qnn_sim.artifacts.encoding_tensors import encodings_id
from lora_core_qnn_sim.artifacts.foundation import FoundationBinary, read_foundation
from lora_core_qnn_sim.artifacts.section import Section, read_section
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.errors import (
    AlphaVectorError,
    EncodingsFirstError,
    ForeignBaseError,
    GraphLoadedError,
    GraphNotLoadedError,
    MismatchedEncodingsError,
    PositionError,
    StaleIoEncodingsError,
    StaleKvCacheError,
    StaticShapeError,
)
from lora_core_qnn_sim.graph.nodes import query_output, value_output
from lora_core_qnn_sim.modes import branch_tensors
from lora_core_qnn_sim.runtime.admission import Rules
from lora_core_qnn_sim.runtime.executor import Executor
from lora_core_qnn_sim.runtime.io_encodings import IoEncodings
from lora_core_qnn_sim.runtime.kernels import ALPHA, ALPHA_LIMIT
from lora_core_qnn_sim.runtime.kv_cache import QuantizedKvCache

Graph = Literal["prefill", "decode"]


@attrs.frozen(kw_only=True)
class Applied:
    """What applying one section cost: its bytes of weights and of encodings, and the time taken."""

    name: str
    part: str
    weight_bytes: int
    encoding_bytes: int
    seconds: float


@attrs.define(kw_only=True, eq=False)
class SimulatedContext:
    """One context binary in memory with its two graphs. Make it with `create`.

    State: which encodings and which weights are applied, each identified; how many sections were applied
    (`generation`); whether the graph is loaded. A refused call changes nothing.
    """

    binary: ContextBinary
    foundation: FoundationBinary
    _rules: Rules
    _executor: Executor | None = None
    _encodings: dict[str, Encoding] = attrs.field(factory=dict)
    _encodings_id: str = ""
    _weights_need: str = ""
    _weights_name: str = ""
    _generation: int = 0
    _active: list[Section] = attrs.field(factory=list)

    @classmethod
    def create(cls, context: Path, foundation: Path) -> SimulatedContext:
        """Create a context from its binary and its foundation, loaded, in the base's state (zero LoRA)."""
        binary, base = read_context(context), read_foundation(foundation)
        if base.digest != binary.foundation:
            raise ForeignBaseError(
                f"{foundation.name} is not the foundation that {context.name} was compiled on", where=str(foundation)
            )
        made = cls(binary=binary, foundation=base, rules=Rules.of(binary))
        made.load()
        return made

    @property
    def loaded(self) -> bool:
        """Whether the graph is loaded."""
        return self._executor is not None

    @property
    def consistent(self) -> bool:
        """Whether weights and encodings belong together, so that the graph may execute."""
        return self._encodings_id == self._weights_need

    @property
    def encodings_id(self) -> str:
        """The id of the encodings applied."""
        return self._encodings_id

    @property
    def applied(self) -> str:
        """The name of the adapter whose weights are applied; empty for the base."""
        return self._weights_name

    def load(self) -> None:
        """Load the graph; the last applied sections are applied again, in their order."""
        if self._executor is not None:
            raise GraphLoadedError("The graph is already loaded")
        self._encodings = self.foundation.with_slots(self.binary.spec) | dict(self.binary.branch)
        self._encodings_id = self._weights_need = self._initial_id()
        self._weights_name = ""
        self._executor = Executor(
            spec=self.binary.spec, base=self.foundation.base, encodings=self._encodings, lora=self.binary.lora
        )
        for section in self._active:
            self._install(section, self._rules.admit(section))

    def unload(self) -> None:
        """Unload the graph; which sections were applied last is remembered."""
        self._require_loaded()
        self._executor = None
        self._generation += 1

    def apply(self, section: Path | Section) -> Applied:
        """Apply a section file; raises a `SectionError` or `DamagedContainerError` and then changes nothing."""
        self._require_loaded()
        start = time.perf_counter()
        read = read_section(section) if isinstance(section, Path) else section
        encodings = self._rules.admit(read)
        if read.part == "weights" and read.encodings_id != self._encodings_id:
            raise EncodingsFirstError(
                f"The weights of {read.name!r} are quantized under other encodings than those applied",
                remedy="Apply the encodings section of its group first, then the weights.",
            )
        self._install(read, encodings)
        self._remember(read)
        weights = sum(array.nbytes for array in read.weights.values())
        return Applied(
            name=read.name,
            part=read.part,
            weight_bytes=weights,
            encoding_bytes=read.payload - weights,
            seconds=time.perf_counter() - start,
        )

    def read_io_encodings(self) -> IoEncodings:
        """Return the I/O encodings as they are now; needed again after every section and every load."""
        self._require_loaded()
        dims = self.binary.spec.dims
        return IoEncodings(
            generation=self._generation,
            logits=self._encodings[dims.logits],
            alpha=ALPHA,
            keys=tuple(self._encodings[query_output(dims, number, "k")] for number in range(dims.n_layers)),
            values=tuple(self._encodings[value_output(dims, number)] for number in range(dims.n_layers)),
        )

    def check_alphas(self, alphas: Sequence[float]) -> None:
        """Raise `AlphaVectorError` if `alphas` is no alpha vector of this context."""
        self._quantize_alphas(alphas)

    def new_cache(self) -> QuantizedKvCache:
        """Return an empty KV cache of this context's shape."""
        return QuantizedKvCache.empty(self.binary.spec)

    def execute(
        self,
        graph: Graph,
        tokens: npt.NDArray[np.int64],
        *,
        valid: int,
        position: int,
        cache: QuantizedKvCache,
        io: IoEncodings,
        alphas: Sequence[float] | None = None,
        all_logits: bool = False,
    ) -> npt.NDArray[np.uint16]:
        """Execute one graph and return logits as unsigned grid integers of `io.logits`, (rows, vocab).

        `tokens` has exactly the graph's static length, of which the first `valid` count and the rest is padding.
        `alphas` are the strengths (default: all 1), quantized by the I/O encoding. Rows: the last valid token's
        (`all_logits`: every valid token's). Raises an `ExecutionError` and then changes nothing.
        """
        executor = self._require_loaded()
        self._check_state(io)
        strengths = self._quantize_alphas(alphas)
        self._check_inputs(graph, tokens, valid, position, cache, self._owner(strengths))
        logits = executor.run(tokens[:valid], position, cache, strengths, last_only=not all_logits)
        cache.length, cache.owner = position + valid, self._owner(strengths)
        return (logits - io.logits.offset).astype(np.uint16)

    def _check_state(self, io: IoEncodings) -> None:
        if not self.consistent:
            raise MismatchedEncodingsError(
                "New encodings are applied but the weights are those of another group",
                remedy="Apply the weights section that goes with the encodings.",
            )
        if io.generation != self._generation:
            raise StaleIoEncodingsError(
                "A section was applied after the I/O encodings were read", remedy="Read the I/O encodings again."
            )

    def _check_inputs(
        self,
        graph: Graph,
        tokens: npt.NDArray[np.int64],
        valid: int,
        position: int,
        cache: QuantizedKvCache,
        owner: str,
    ) -> None:
        length = self.binary.spec.input_len if graph == "prefill" else 1
        if tokens.shape != (length,) or not 1 <= valid <= length:
            raise StaticShapeError(f"Graph {graph!r} takes {length} tokens, got {tokens.shape}, {valid} valid")
        vocab = self.binary.spec.dims.vocab_size
        if tokens.min() < 0 or tokens.max() >= vocab:
            raise StaticShapeError(f"Token ids must be at least 0 and below {vocab}")
        if cache.owner not in (None, owner):
            raise StaleKvCacheError(
                "The KV cache was filled by another adapter or strength", remedy="Reset it and start at position 0."
            )
        if position != cache.length:
            raise PositionError(f"Position {position} does not follow the {cache.length} positions in the KV cache")
        if position + valid > self.binary.spec.context_len:
            raise PositionError(f"Position {position + valid} is beyond the context of {self.binary.spec.context_len}")

    def _quantize_alphas(self, alphas: Sequence[float] | None) -> npt.NDArray[np.float64]:
        count = self.binary.spec.alphas
        values = np.ones(count) if alphas is None else np.asarray(alphas, np.float64)
        if values.shape != (count,) or not np.all(np.isfinite(values)):
            raise AlphaVectorError(f"The alpha vector has {count} finite elements, got {values.reshape(-1).tolist()}")
        if values.min() < 0 or values.max() > ALPHA_LIMIT:
            raise AlphaVectorError(f"Strengths lie between 0 and {ALPHA_LIMIT}, got {values.tolist()}")
        return ALPHA.quantize(values)

    def _owner(self, strengths: npt.NDArray[np.float64]) -> str:
        hasher = hashlib.sha256(f"{self._encodings_id} {self._weights_name} {list(strengths)}".encode())
        return hasher.hexdigest()

    def _initial_id(self) -> str:
        scope = self._rules.scope or branch_tensors(self.binary.spec)
        return encodings_id({name: self._encodings[name] for name in scope})

    def _install(self, section: Section, encodings: dict[str, Encoding]) -> None:
        executor = self._require_loaded()
        if section.part != "weights":
            if encodings:
                self._encodings = self._encodings | encodings
            executor.update(encodings=self._encodings)
            self._encodings_id = section.encodings_id
        if section.part != "encodings":
            executor.update(lora=section.weights)
            self._weights_need, self._weights_name = section.encodings_id, section.name
        self._generation += 1

    def _remember(self, section: Section) -> None:
        # A combined section replaces all that was applied; a part replaces its like and keeps the other.
        replaced = {"weights": ("weights",), "encodings": ("encodings",)}.get(section.part)
        if replaced is None:
            self._active = [section]
            return
        self._active = [old for old in self._active if old.part not in replaced] + [section]

    def _require_loaded(self) -> Executor:
        if self._executor is None:
            raise GraphNotLoadedError("The graph is not loaded", remedy="Load it first.")
        return self._executor


def sections_state(context: SimulatedContext) -> tuple[Any, ...]:
    """Return what determines results: the encodings and weights applied (for comparisons in tests and reports)."""
    return (context.encodings_id, context.applied, context.consistent)
