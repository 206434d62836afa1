"""Numbers: how far exported logits are from the reference's, and how much of an adapter's effect arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.models.reference_model import Trace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@attrs.frozen(kw_only=True)
class Numbers:
    """One method against its reference, over all prompts and positions.

    `max_error` and `mean_error` are absolute; `spread` is the standard deviation of the reference's logits around
    their mean at a position. `kl` is the mean of KL(reference || exported) in nats, `max_kl` the largest. `top1` is the
    share of positions that agree on the most likely token, `greedy` the mean share of each text that greedy
    generation repeats before its first other token.
    """

    positions: int
    spread: float
    max_error: float
    mean_error: float
    kl: float
    max_kl: float
    top1: float
    greedy: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return attrs.asdict(self)


@attrs.frozen(kw_only=True)
class Effect:
    """What an adapter does to the logits after each prompt, against what it does in the reference.

    `ratio` is the least-squares factor from the reference's effect to the exported one (1: the right scale, 2: twice
    as strong), `direction` their cosine. `size` is the root mean square of the reference's effect in units of the
    spread, `exported_size` that of the exported one. `noise` is the root mean square of the exported base's error at
    the same places, in the same units: what quantization alone moves.
    """

    ratio: float
    direction: float
    size: float
    exported_size: float
    noise: float = 0.0

    def direction_with(self, noise: float) -> float:
        """Return the cosine that an effect of this size keeps if base and adapter each have an error of `noise`.

        Errors of two quantized models are as good as independent of each other and of the effect: their squares add.
        """
        power: float = self.size**2
        return float((power / (power + 2 * noise**2)) ** 0.5) if power else 0.0

    def ratio_with(self, noise: float) -> float:
        """Return how many times this size an effect seems to be if base and adapter each have an error of `noise`."""
        cosine = self.direction_with(noise)
        return 1 / cosine if cosine else float("inf")

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return attrs.asdict(self)


def compare(reference: Sequence[Trace], exported: Sequence[npt.NDArray[np.float32]], *, tie: float) -> Numbers:
    """Return the numbers of `exported`, logits along the same texts as `reference`.

    Tokens whose reference logits differ by at most `tie` times the spread count as the same choice.
    """
    import numpy as np

    wanted = np.concatenate([trace.logits for trace in reference]).astype(np.float64)
    found = np.concatenate(list(exported)).astype(np.float64)
    error = np.abs(found - wanted)
    spread = float(wanted.std(axis=1).mean())
    divergence = _kl(wanted, found)
    rows = np.arange(len(wanted))
    regret = wanted.max(axis=1) - wanted[rows, found.argmax(axis=1)]
    agrees = regret <= tie * spread
    return Numbers(
        positions=len(wanted),
        spread=spread,
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        kl=float(divergence.mean()),
        max_kl=float(divergence.max()),
        top1=float(agrees.mean()),
        greedy=_greedy(agrees, [len(trace.tokens) for trace in reference]),
    )


def effect(
    reference: tuple[Sequence[Trace], Sequence[Trace]],
    exported: tuple[Sequence[npt.NDArray[np.float32]], Sequence[npt.NDArray[np.float32]]],
    *,
    fitted: bool = False,
) -> Effect:
    """Return the effect of an adapter; both pairs are (base, adapter) over the same prompts.

    Only the logits right after a prompt count: after that the texts of base and adapter part. One that was `fitted` to
    the exported base also takes back what that one lost, so its effect is what it does to the reference's base.
    """
    import numpy as np

    base, adapted = (np.stack([trace.logits[0] for trace in side]).astype(np.float64) for side in reference)
    found_base, found_adapted = (np.stack([logits[0] for logits in side]).astype(np.float64) for side in exported)
    wanted, found = (_centered(adapted - base), _centered(found_adapted - (base if fitted else found_base)))
    power, found_power, product = (float((a * b).sum()) for a, b in ((wanted, wanted), (found, found), (wanted, found)))
    spread = float(base.std(axis=1).mean())
    error = _centered(found_base - base)
    return Effect(
        ratio=product / power if power else float("nan"),
        direction=product / (power * found_power) ** 0.5 if power and found_power else float("nan"),
        size=float(np.sqrt((wanted**2).mean())) / spread,
        exported_size=float(np.sqrt((found**2).mean())) / spread,
        noise=float(np.sqrt((error**2).mean())) / spread,
    )


def _centered(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A constant added to all logits of a position means nothing."""
    centered: npt.NDArray[np.float64] = values - values.mean(axis=1, keepdims=True)
    return centered


def _kl(wanted: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    import numpy as np

    log_p, log_q = (values - _log_sum_exp(values) for values in (wanted, found))
    divergence: npt.NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return divergence


def _log_sum_exp(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    import numpy as np

    top = values.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = top + np.log(np.exp(values - top).sum(axis=1, keepdims=True))
    return result


def _greedy(agrees: npt.NDArray[np.bool_], lengths: Sequence[int]) -> float:
    shares, start = [], 0
    for length in lengths:
        text = agrees[start : start + length]
        shares.append(1.0 if text.all() else float(text.argmin()) / length)
        start += length
    return sum(shares) / len(shares)
