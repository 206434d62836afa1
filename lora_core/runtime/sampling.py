"""Choosing the next token from logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from lora_core.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt


def _non_negative(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value >= 0:
        raise UsageError(f"{attribute.name} is {value}, and cannot be negative")


def _probability(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 < value <= 1:
        raise UsageError(f"{attribute.name} is {value}, and must lie in (0, 1]")


@attrs.frozen(kw_only=True)
class Sampling:
    """`temperature` 0 is greedy. `top_p` keeps the fewest most likely tokens whose probabilities reach it. The same
    `seed` gives the same tokens for the same logits.
    """

    temperature: float = attrs.field(default=0.0, validator=_non_negative)
    top_p: float = attrs.field(default=1.0, validator=_probability)
    seed: int = attrs.field(default=0, validator=_non_negative)


class Sampler:
    """Picks tokens one after another; its random state starts from the seed."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """Return the next token; raises `CheckFailedError` if the logits are not numbers."""
        best = int(np.argmax(logits))  # NaN wins argmax, so this one value stands for all
        if not np.isfinite(logits[best]):
            raise CheckFailedError(
                "The program's logits are not finite",
                remedy="Check the bundle with `lora-core verify`; the numbers overflow or a file is damaged.",
            )
        if self._sampling.temperature == 0:
            return best
        probabilities = _nucleus(_softmax(logits / self._sampling.temperature), self._sampling.top_p)
        return int(self._random.choice(len(probabilities), p=probabilities))


def _softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    weights: npt.NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max())
    weights /= weights.sum()
    return weights


def _nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.float64]:
    """Keep the fewest most likely tokens that together reach `top_p` (Holtzman et al., 2020, section 3.1)."""
    if top_p == 1:
        return probabilities
    order = np.argsort(-probabilities, kind="stable")
    reached = np.cumsum(probabilities[order])
    kept = order[: int(np.searchsorted(reached, top_p)) + 1]
    chosen = np.zeros_like(probabilities)
    chosen[kept] = probabilities[kept]
    chosen /= chosen.sum()
    return chosen
