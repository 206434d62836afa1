"""A bundle opened on a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import UnsupportedError
from lora_core.runtime.memory import count

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lora_core.bundle.bundle import Bundle


@attrs.frozen(kw_only=True)
class Loaded:
    """What loading one method cost. Memory in bytes, of the whole process after the load, as `Memory` explains.

    `proportional` is optional: 0 from a session that does not say.
    """

    adapter: str | None
    seconds: float
    resident: int
    anonymous: int
    file_backed: int
    proportional: int = 0

    @classmethod
    def measured(cls, adapter: str | None, seconds: float) -> Loaded:
        """Return what a load that took `seconds` and ended just now left behind."""
        memory = count()
        return cls(
            adapter=adapter,
            seconds=seconds,
            resident=memory.resident,
            anonymous=memory.anonymous,
            file_backed=memory.file_backed,
            proportional=memory.proportional,
        )


class Session(ABC):
    """Programs of one bundle in one process. `adapter=None` always means the base.

    Backends that declare it take more than names (`lora_core.runtime.selection`): `pirate@0.5` with
    `Capability.STRENGTH`, `pirate:0.7+json:0.3` with `Capability.BLEND`. Each counts as an adapter of its own. The
    first also lets `strength` say what a name stands for from then on.

    The KV cache never survives a change of adapter: a session clears it, or refuses a position other than 0.
    """

    @property
    @abstractmethod
    def bundle(self) -> Bundle:
        """The bundle that is open."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """What a user should know of this runtime: whether it evaluates or executes, whether the weight cache is
        on (and was read back), library versions, and `context_len`, the number of tokens that fit.
        """

    @property
    def rewinds(self) -> bool:
        """Whether tokens that were fed may be written over: not where a loaded model keeps a state of all of them."""
        return True

    @abstractmethod
    def load(self, adapter: str | None) -> Loaded:
        """Make an adapter resident; loading one again is free. Raises `UsageError` for an unknown name."""

    def unload(self, adapter: str | None) -> None:
        """Let go of an adapter and its memory, and of the KV cache if it is its own; one that is not loaded stays so.

        Loading it again is a load like the first. Raises `UnsupportedError` where methods stay until the session ends.
        """
        raise UnsupportedError(
            f"Backend {self.bundle.manifest.backend!r} keeps what it has loaded, {adapter or 'the base'} too",
            remedy="Close the session, and open the bundle again.",
        )

    def strength(self, adapter: str, strength: float) -> None:
        """Let `adapter` count `strength` times what it was linked at from now on, wherever its name stands, in a blend
        too; 1 is as it was linked.

        With another strength it is as another adapter: its next text starts at position 0. Raises `UsageError` for an
        unknown name or a strength that cannot be, `UnsupportedError` where strengths were fixed when it was linked.
        """
        raise UnsupportedError(
            f"Backend {self.bundle.manifest.backend!r} runs adapters at the strength that they were linked at, so "
            f"{adapter!r} cannot have {strength:g}",
            where=str(self.bundle.path),
            remedy=f"Link it under another name: lora-core add BUNDLE --adapter {adapter}2=DIR@{strength:g}.",
        )

    @abstractmethod
    def reset(self) -> None:
        """Forget the KV cache of every method."""

    @abstractmethod
    def step(self, adapter: str | None, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:
        """Feed `tokens` at `position` and return the logits of the last of them, shape (vocab_size,)."""

    def call(self, adapter: str | None, inputs: Sequence[Any]) -> Sequence[npt.NDArray[Any]]:  # noqa: ARG002 - the default uses none
        """Call the method of `adapter` with `inputs`, arrays or tensors as the exported module takes them.

        Returns its outputs. For modules that take no tokens; raises `UnsupportedError` by default.
        """
        raise UnsupportedError("This session takes tokens alone, no inputs of a module of your own.")

    @abstractmethod
    def close(self) -> None:
        """Release the programs and their memory."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
