"""A session of a module that takes no tokens, asked with inputs that the caller gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_core.runtime.session import Loaded, Session

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_core.bundle.bundle import Bundle

Inputs = Sequence[Sequence[Any]]
"""Positional inputs of several calls: arrays or tensors, as the module's `forward` takes them."""


class GivenInputsSession(Session):
    """`session` with the inputs of call number i in place of token i, and all of its outputs in place of logits."""

    def __init__(self, session: Session, inputs: Inputs) -> None:
        self._session = session
        self._inputs = inputs

    @property
    def bundle(self) -> Bundle:
        """The bundle that is open."""
        return self._session.bundle

    @property
    def facts(self) -> Mapping[str, Any]:
        """Those of the session, and how many calls there are to choose from."""
        return {**self._session.facts, "given_inputs": len(self._inputs)}

    def load(self, adapter: str | None) -> Loaded:
        """Load `adapter`."""
        return self._session.load(adapter)

    def reset(self) -> None:
        """Reset the session; calls remember nothing."""
        self._session.reset()

    def step(self, adapter: str | None, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:  # noqa: ARG002 - there are no positions
        """Return the outputs of the call that the last of `tokens` numbers."""
        return flat(self._session.call(adapter, self._inputs[tokens[-1]]))

    def call(self, adapter: str | None, inputs: Sequence[Any]) -> Sequence[npt.NDArray[Any]]:
        """Call the session."""
        return self._session.call(adapter, inputs)

    def close(self) -> None:
        """Close the session."""
        self._session.close()


def flat(outputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Return all outputs of one call as one row of float32."""
    return np.concatenate([np.asarray(output, np.float32).reshape(-1) for output in outputs])
