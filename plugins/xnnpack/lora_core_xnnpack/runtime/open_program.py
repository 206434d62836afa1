"""A program opened by ExecuTorch, in one of the two ways that its Python interface has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_core.models.executorch.options import KEEPS_STATE
from lora_core_xnnpack.runtime.library import runtime_library
from lora_core_xnnpack.runtime.module_memory import NativeModule
from lora_core_xnnpack.runtime.packed_cache import PackedCache
from lora_core_xnnpack.runtime.runtime_options import OptionError
from lora_core_xnnpack.runtime.shared_arena import PlannedMemory, SharedArena

if TYPE_CHECKING:
    import numpy.typing as npt

Inputs = tuple[Any, ...]
PACKED_CACHE_PATH = "packed_cache_path"


class MethodCalls:
    """Calls of one method, by whoever shares it.

    Where inputs are the very tuple of the call before, in whose tensors other values may stand, the method is not told
    them again: that takes about a microsecond for each, and an adapter that is an input is hundreds.
    """

    def __init__(self, call: Callable[[Inputs], list[Any]], again: Callable[[], list[Any]], meta: Any) -> None:
        self.meta = meta
        self._call, self._again = call, again
        self._last: Inputs | None = None

    def __call__(self, inputs: Inputs) -> list[Any]:
        """Return the outputs, which the next call may overwrite."""
        if inputs is self._last:
            return self._again()
        self._last = None  # a call that fails half way may have told some
        outputs = self._call(inputs)
        self._last = inputs
        return outputs

    def forget(self) -> None:
        """Let go of the inputs of the last call."""
        self._last = None


class LoadedMethod:
    """One method, ready to run: tokens in, logits out; or any tensors, for a module that takes no tokens.

    `more` are tensors that it takes behind them, the same at each call.
    """

    def __init__(self, calls: MethodCalls, more: Sequence[Any] = ()) -> None:
        self._calls = calls
        self._more = tuple(more)
        self._token, self._position = np.zeros((1, 1), np.int64), np.zeros(1, np.int64)
        self._step: Inputs = ()

    def taking(self, more: Sequence[Any]) -> LoadedMethod:
        """Return the same method, called with the tensors `more` behind its other inputs."""
        return LoadedMethod(self._calls, more) if more else self

    def release(self) -> None:
        """Let go of all inputs: this object is not called again, but others of its method are."""
        self._calls.forget()
        self._more = self._step = ()

    @property
    def input_sizes(self) -> list[tuple[int, ...]]:
        """The shapes of all inputs, the largest where they may be smaller."""
        meta = self._calls.meta
        return [tuple(meta.input_tensor_meta(index).sizes()) for index in range(meta.num_inputs())]

    @property
    def longest_step(self) -> int:
        """The most tokens that one call takes."""
        return int(self._calls.meta.input_tensor_meta(0).sizes()[1])

    def call(self, inputs: Sequence[Any]) -> list[npt.NDArray[Any]]:
        """Return the outputs for `inputs`, arrays or tensors."""
        import torch

        outputs = self._calls((*(torch.as_tensor(each) for each in inputs), *self._more))
        return [output.numpy().copy() for output in outputs if isinstance(output, torch.Tensor)]

    def __call__(self, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:
        """Return the logits of the last of at most `longest_step` tokens."""
        logits = self._calls(self._inputs(tokens, position))[0]
        last: npt.NDArray[np.float32] = logits.reshape(-1, logits.shape[-1])[-1].float().numpy().copy()
        return last

    def _inputs(self, tokens: Sequence[int], position: int) -> Inputs:
        import torch

        if len(tokens) > 1:
            places = torch.tensor([list(tokens)], dtype=torch.long), torch.tensor([position], dtype=torch.long)
            return (*places, *self._more)
        self._token[0, 0], self._position[0] = tokens[0], position
        self._step = self._step or (torch.from_numpy(self._token), torch.from_numpy(self._position), *self._more)
        return self._step


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

        def again() -> list[Any]:
            method.execute()
            outputs: list[Any] = method.get_outputs(clone_outputs=False)
            return outputs

        return LoadedMethod(
            MethodCalls(lambda inputs: method.call(inputs, clone_outputs=False), again, method.method_meta())
        )

    def constant(self, name: str) -> int:
        """Return what a metadata method gives."""
        return int(self._program.load_method(name).call(())[0])


class PackedProgram(OpenProgram):
    """A program whose packed weights lie in a file: only ExecuTorch's `Module` can be told so. Its methods plan into
    `arena`, share one of the program's where the runtime lets itself be told that alone, or have one each.
    """

    def __init__(
        self, runtime: ModuleType, program: Path, data: Path, packed: Path, arena: SharedArena | None, *, share: bool
    ) -> None:
        self._module = runtime._load_for_executorch(str(program), str(data))
        self._native = NativeModule(self._module, runtime_library())
        self._native.load_with_text_option(PACKED_CACHE_PATH, str(packed))
        # A state is multiplied by 0 where a text begins, so it must be a number: what others leave there need not be.
        # Methods of one program have an arena of its own.
        taking = [name for name in self.names() if self._module.method_meta(name).num_inputs()]
        self._arena = None if KEEPS_STATE in self.names() or len(taking) > 1 else arena
        self._planned: list[PlannedMemory] = []
        self.shares_arena = share and self._native.share_arenas()

    def names(self) -> set[str]:
        """Return the names of all methods."""
        return set(self._module.method_names())

    def load(self, name: str) -> LoadedMethod:
        """Load a method; where the runtime cannot be told to, by running it once."""
        loaded = self._native.load_method(name, self._plan(name))
        method = LoadedMethod(
            MethodCalls(
                lambda inputs: self._module.run_method(name, inputs, clone_outputs=False),
                lambda: self._module.plan_execute(name, clone_outputs=False),
                self._module.method_meta(name),
            )
        )
        if not loaded:
            method.taking(_zeros(method.input_sizes[2:]))([0], 0)
        return method

    def _plan(self, name: str) -> PlannedMemory | None:
        sizes = None if self._arena is None else self._native.planned_sizes(name)
        if self._arena is None or sizes is None:
            return None
        self._planned.append(self._arena.planned(sizes))
        return self._planned[-1]

    def constant(self, name: str) -> int:
        """Return what a metadata method gives."""
        return int(self._module.run_method(name, ())[0])


def _zeros(sizes: Sequence[tuple[int, ...]]) -> list[Any]:
    import torch

    return [torch.zeros(size) for size in sizes]


def open_program(
    runtime: ModuleType,
    program: Path,
    data: Path,
    packed: PackedCache | None,
    arena: SharedArena | None,
    *,
    share_arena: bool,
) -> OpenProgram:
    """Open `program` with the foundation `data`; with packed weights in a file if there is one to use, its methods then
    in `arena` if there is one, else in one of the program's if `share_arena`.
    """
    path = packed.path if packed is not None else None
    if packed is None or path is None:
        return ArenaProgram(runtime, program, data)
    try:
        return PackedProgram(runtime, program, data, path, arena, share=share_arena)
    except OptionError as error:
        packed.give_up(str(error))
        return ArenaProgram(runtime, program, data)
