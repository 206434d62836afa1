"""A program of a caller's own module opened: no tokens, no caches, inputs as the module takes them."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.bundle.bundle import Bundle
from lora_core.errors import UnsupportedError, UsageError
from lora_core.intake.parsing import parsing
from lora_core.runtime.session import Loaded, Session
from lora_core_coreml.program.naming import Kind
from lora_core_coreml.runtime.adapters import CalledAdapters
from lora_core_coreml.runtime.evaluation.function import Precision
from lora_core_coreml.runtime.evaluation.operators import REASONS
from lora_core_coreml.runtime.evaluation.program import EvaluatedProgram

_KIND: Kind = "forward"


class CoremlModuleSession(Session):
    """The methods of one program, each called with flat inputs; they remember nothing from call to call."""

    def __init__(
        self,
        bundle: Bundle,
        program: EvaluatedProgram,
        adapters: CalledAdapters,
        *,
        precision: Precision,
        runtime: str,
    ) -> None:
        """Call the methods of `program`, which `close` closes."""
        self._bundle, self._program, self._adapters = bundle, program, adapters
        self._precision: Precision = precision
        self._runtime = runtime
        self._loaded: dict[str | None, Loaded] = {}
        self._closed = False

    @property
    def bundle(self) -> Bundle:
        """The bundle that is open."""
        return self._bundle

    @property
    def facts(self) -> Mapping[str, Any]:
        """What runs, at which precision, and which operators have references of our own."""
        return {
            "runtime": self._runtime,
            "precision": self._precision,
            "platform": platform.system(),
            "own_references": dict(REASONS),
        }

    def load(self, adapter: str | None) -> Loaded:
        """Load the function of an adapter; raises `UsageError` for an unknown name, or if the session is closed."""
        if self._closed:
            raise UsageError("The session is closed", remedy="Open the bundle again.")
        if adapter not in self._loaded:
            start = time.monotonic()
            self._adapters.load(adapter)
            with parsing(self._program.path):
                self._program.load(self._adapters.method(adapter, _KIND))
            self._loaded[adapter] = Loaded.measured(adapter, time.monotonic() - start)
        return self._loaded[adapter]

    def reset(self) -> None:
        """Forget nothing: there is nothing to forget."""

    def step(self, adapter: str | None, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:  # noqa: ARG002 - there are none
        """Refuse: the module takes no tokens."""
        raise UnsupportedError("This bundle is no language model with static attention, so no tokens can be fed.")

    def call(self, adapter: str | None, inputs: Sequence[Any]) -> Sequence[npt.NDArray[Any]]:
        """Call the method of `adapter` with `inputs`, in its own types, and return its outputs.

        Raises `UsageError` if they do not fit.
        """
        self.load(adapter)
        method = self._adapters.method(adapter, _KIND)
        more = self._adapters.inputs(adapter, _KIND)
        own = self._program.input_count(method) - len(more)
        given = [np.asarray(each) for each in inputs]
        shapes, wanted = [each.shape for each in given], self._program.input_shapes(method)[:own]
        if shapes != wanted:
            raise UsageError(f"The inputs are not those of the module: it takes {wanted}, not {shapes}.")
        types = self._program.input_types(method)
        flat = [each.astype(dtype) for each, dtype in zip(given, types, strict=False)]
        return self._program.run(method, [*flat, *more], self._precision)

    def close(self) -> None:
        """Release the program."""
        self._closed = True
        self._program.close()
