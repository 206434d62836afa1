"""A stored program on CoreML itself, through ExecuTorch's runtime: macOS only.

Written against ExecuTorch 1.5.1's Python API and not run yet: the project's tests run on Linux, which has no CoreML. So
a session takes it only if its option `execute` asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.errors import UnsupportedError
from lora_core_coreml.runtime.evaluation.function import Precision
from lora_core_coreml.runtime.evaluation.program import EvaluatedProgram

EXECUTION = "CoreML through ExecuTorch's runtime"


class ExecutedProgram(EvaluatedProgram):
    """A `.pte` whose methods run on CoreML; its constant methods are read from the file as for evaluation."""

    def __init__(self, path: Path) -> None:
        """Load the program; raises `UnsupportedError` if ExecuTorch's runtime here has no CoreML."""
        super().__init__(path)
        from executorch.runtime import Runtime

        runtime = Runtime.get()
        if not runtime.backend_registry.is_available("CoreMLBackend"):
            raise UnsupportedError(
                "ExecuTorch's runtime on this machine has no CoreML backend",
                remedy="Install ExecuTorch's wheel for macOS.",
            )
        self._program = runtime.load_program(path)
        self._methods: dict[str, Any] = {}

    def load(self, method: str) -> None:
        """Load `method`, which compiles its package for this machine the first time."""
        if method not in self._methods:
            self._methods[method] = self._program.load_method(method)

    def unload(self, method: str) -> None:
        """Release `method`."""
        self._methods.pop(method, None)

    def run(self, method: str, inputs: Sequence[npt.NDArray[Any]], precision: Precision) -> list[npt.NDArray[Any]]:
        """Run `method`; `precision` is the machine's own business."""
        import torch

        del precision
        self.load(method)
        wanted = self.input_types(method)
        tensors = [
            torch.from_numpy(np.ascontiguousarray(value.astype(kind)))
            for value, kind in zip(inputs, wanted, strict=True)
        ]
        return [output.numpy() for output in self._methods[method].execute(tensors)]

    def close(self) -> None:
        """Release the methods and the program."""
        self._methods.clear()
        self._program = None
        super().close()
