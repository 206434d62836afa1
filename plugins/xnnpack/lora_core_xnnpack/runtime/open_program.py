"""A program opened by ExecuTorch, in one of the two ways that its Python interface has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_core_xnnpack.runtime.library import runtime_library
from lora_core_xnnpack.runtime.module_memory import load_with_text_option, share_arenas
from lora_core_xnnpack.runtime.packed_cache import PackedCache
from lora_core_xnnpack.runtime.runtime_options import OptionError

if TYPE_CHECKING:
    import numpy.typing as npt

PACKED_CACHE_PATH = "packed_cache_path"


class LoadedMethod:
    """One method, ready to run: tokens in, logits out. `longest_step` is the most tokens that one call takes."""

    def __init__(self, call: Callable[[Any], list[Any]], meta: Any) -> None:
        self._call = call
        self.longest_step: int = meta.input_tensor_meta(0).sizes()[1]

    def __call__(self, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:
        """Return the logits of the last of at most `longest_step` tokens."""
        import torch

        inputs = (torch.tensor([list(tokens)], dtype=torch.long), torch.tensor([position], dtype=torch.long))
        logits = self._call(inputs)[0]
        last: npt.NDArray[np.float32] = logits.reshape(-1, logits.shape[-1])[-1].float().numpy().copy()
        return last


class OpenProgram(ABC):
    """A program in memory. Its data stays mapped as long as this object or a method of it lives."""

    @abstractmethod
    def names(self) -> set[str]:
        """Return the names of all methods."""

    @abstractmethod
    def load(self, name: str) -> LoadedMethod:
        """Load a method; raises `RuntimeError` if its data is not there."""

    @abstractmethod
    def constant(self, name: str) -> int:
        """Return what a metadata method gives."""


class ArenaProgram(OpenProgram):
    """A program whose methods share one arena: one KV cache and one set of activations for all."""

    def __init__(self, runtime: ModuleType, program: Path, data: Path) -> None:
        self._program = runtime._load_program(str(program), data_path=str(data))

    def names(self) -> set[str]:
        """Return the names of all methods."""
        return {self._program.get_method_name(index) for index in range(self._program.num_methods())}

    def load(self, name: str) -> LoadedMethod:
        """Load a method into the arena."""
        method = self._program.load_method(name)
        return LoadedMethod(lambda inputs: method.call(inputs, clone_outputs=False), method.method_meta())

    def constant(self, name: str) -> int:
        """Return what a metadata method gives."""
        return int(self._program.load_method(name).call(())[0])


class PackedProgram(OpenProgram):
    """A program whose packed weights lie in a file: only ExecuTorch's `Module` can be told so. Its methods share one
    arena where the runtime lets itself be told that too, else each has its own.
    """

    def __init__(self, runtime: ModuleType, program: Path, data: Path, packed: Path, *, share_arena: bool) -> None:
        self._module = runtime._load_for_executorch(str(program), str(data))
        load_with_text_option(self._module, runtime_library(), PACKED_CACHE_PATH, str(packed))
        self.shares_arena = share_arena and share_arenas(self._module, runtime_library())

    def names(self) -> set[str]:
        """Return the names of all methods."""
        return set(self._module.method_names())

    def load(self, name: str) -> LoadedMethod:
        """Load a method by running it once: a `Module` has no other way in Python."""
        method = LoadedMethod(
            lambda inputs: self._module.run_method(name, inputs, clone_outputs=False), self._module.method_meta(name)
        )
        method([0], 0)
        return method

    def constant(self, name: str) -> int:
        """Return what a metadata method gives."""
        return int(self._module.run_method(name, ())[0])


def open_program(
    runtime: ModuleType, program: Path, data: Path, packed: PackedCache | None, *, share_arena: bool
) -> OpenProgram:
    """Open `program` with the foundation `data`; with packed weights in a file if there is one to use, its methods then
    in one arena if `share_arena`.
    """
    path = packed.path if packed is not None else None
    if packed is None or path is None:
        return ArenaProgram(runtime, program, data)
    try:
        return PackedProgram(runtime, program, data, path, share_arena=share_arena)
    except OptionError as error:
        packed.give_up(str(error))
        return ArenaProgram(runtime, program, data)
