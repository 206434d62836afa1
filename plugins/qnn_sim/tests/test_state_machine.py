"""Apply, execute, unload and load in random orders: every illegal call refused with the right error, no legal one,
and results after any legal sequence equal those of a fresh load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from lora_core_qnn_sim import errors
from lora_core_qnn_sim.runtime.context import SimulatedContext
from lora_core_qnn_sim.runtime.io_encodings import IoEncodings
from lora_core_qnn_sim.runtime.kv_cache import QuantizedKvCache

# The full run (10,000 steps and more) belongs to benchmarks/qnn_sim.py, which sets these.
EXAMPLES = int(os.environ.get("QNN_SIM_EXAMPLES", "25"))
STEPS = int(os.environ.get("QNN_SIM_STEPS", "40"))
GROUP = {"a1": "g1", "a2": "g1", "a3": "g2", "a4": "g2", "a5": "g3", "default_adapter": "base"}
FILES = [
    "llm_a1_weights.bin",
    "llm_a1_encodings.bin",
    "llm_a2_weights.bin",
    "llm_a3_weights.bin",
    "llm_a3_encodings.bin",
    "llm_a4_weights.bin",
    "llm_a5.bin",
    "llm_default_adapter.bin",
]
PROMPT = np.array([7, 3, 50, 21])


def fresh_logits(bundle: Any, adapter: str) -> bytes:
    """Return what a context loaded anew gives for `adapter`."""
    context = SimulatedContext.create(bundle.file("context.bin"), bundle.file("foundation.bin"))
    directory = bundle.path / "sections"
    leader = {"a2": "a1", "a4": "a3"}.get(adapter, adapter)
    if adapter in ("a5", "default_adapter"):
        context.apply(directory / f"llm_{adapter}.bin")
    elif adapter:
        context.apply(directory / f"llm_{leader}_encodings.bin")
        context.apply(directory / f"llm_{adapter}_weights.bin")
    return logits(context, context.new_cache(), context.read_io_encodings())


def logits(context: SimulatedContext, cache: QuantizedKvCache, io: IoEncodings) -> bytes:
    padded = np.pad(PROMPT, (0, context.binary.spec.input_len - len(PROMPT)))
    return context.execute("prefill", padded, valid=len(PROMPT), position=cache.length, cache=cache, io=io).tobytes()


class Orders(RuleBasedStateMachine):
    """A model of the published rules beside the runtime; they must agree on every step."""

    bundle: ClassVar[Any]
    fresh: ClassVar[dict[str, bytes]]
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.context = SimulatedContext.create(self.bundle.file("context.bin"), self.bundle.file("foundation.bin"))
        self.loaded = True
        # The model: whose encodings and whose weights are applied, and what the client holds.
        self.encodings, self.weights, self.adapter = "base", "base", ""
        self.io = self.context.read_io_encodings()
        self.io_fresh = True
        self.cache = self.context.new_cache()
        self.filled_by: str | None = None

    @rule(file=st.sampled_from(FILES))
    def apply(self, file: str) -> None:
        type(self).steps += 1
        adapter, _, part = file.removeprefix("llm_").removesuffix(".bin").rpartition("_")
        if part not in ("weights", "encodings"):
            adapter, part = file.removeprefix("llm_").removesuffix(".bin"), "combined"
        expected = None
        if not self.loaded:
            expected = errors.GraphNotLoadedError
        elif part == "weights" and GROUP[adapter] != self.encodings:
            expected = errors.EncodingsFirstError
        self.attempt(expected, lambda: self.context.apply(self.bundle.path / "sections" / file))
        if expected is None:
            self.io_fresh = False
            if part != "weights":
                self.encodings = GROUP[adapter]
            if part != "encodings":
                self.weights, self.adapter = GROUP[adapter], adapter

    @rule()
    def read_io_encodings(self) -> None:
        type(self).steps += 1
        if self.attempt(None if self.loaded else errors.GraphNotLoadedError, self.context.read_io_encodings):
            self.io, self.io_fresh = self.context.read_io_encodings(), True

    @rule()
    def execute(self) -> None:
        type(self).steps += 1
        expected: type[Exception] | None = None
        if not self.loaded:
            expected = errors.GraphNotLoadedError
        elif self.encodings != self.weights:
            expected = errors.MismatchedEncodingsError
        elif not self.io_fresh:
            expected = errors.StaleIoEncodingsError
        elif self.filled_by not in (None, self.adapter):
            expected = errors.StaleKvCacheError
        elif self.cache.length + len(PROMPT) > 32:
            expected = errors.PositionError
        started_empty = self.cache.length == 0
        found: list[bytes] = []
        self.attempt(expected, lambda: found.append(logits(self.context, self.cache, self.io)))
        if expected is None:
            self.filled_by = self.adapter
            if started_empty:
                assert found[0] == self.fresh[self.adapter]

    @rule()
    def reset_cache(self) -> None:
        type(self).steps += 1
        self.cache.reset()
        self.filled_by = None

    @rule()
    def unload(self) -> None:
        type(self).steps += 1
        self.attempt(None if self.loaded else errors.GraphNotLoadedError, self.context.unload)
        if self.loaded:
            self.loaded, self.io_fresh = False, False

    @rule()
    def load(self) -> None:
        type(self).steps += 1
        self.attempt(errors.GraphLoadedError if self.loaded else None, self.context.load)
        self.loaded = True

    @precondition(lambda self: self.loaded)
    @invariant()
    def the_runtime_agrees_on_what_is_applied(self) -> None:
        assert self.context.applied == self.adapter
        assert self.context.consistent == (self.encodings == self.weights)

    def attempt(self, expected: type[Exception] | None, call: Any) -> bool:
        """Make a call that must be refused with exactly `expected`, or must succeed."""
        if expected is None:
            call()
            return True
        with pytest.raises(errors.SimulatorError) as caught:
            call()
        assert type(caught.value) is expected
        return False


def test_every_order_of_calls_is_refused_or_allowed_as_the_rules_say(grouped: Any, tmp_path: Path) -> None:
    Orders.bundle = grouped
    Orders.fresh = {adapter: fresh_logits(grouped, adapter) for adapter in ("", *GROUP)}
    Orders.steps = 0
    profile = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Orders, settings=profile)
    print(f"{Orders.steps} steps")
    assert Orders.steps >= EXAMPLES * STEPS // 2
