"""Numbers against limits."""

from __future__ import annotations

from collections.abc import Iterator

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.kinds import is_zero
from lora_core.limits import Limits
from lora_core.verification.finding import Finding, found, unchecked
from lora_core.verification.numbers import Effect, Numbers

# An adapter may be quantized that much worse than the base: it moves activations to where the grid is coarser.
_MORE_NOISE = 2
# Two directions that have nothing to do with each other have a cosine like this by chance: four prompts, and logits
# that move together.
_BY_CHANCE = 0.15
# An adapter that moves logits by less than this share of their spread is too weak for its size to be judged.
_WEAK = 1e-3


def logits(subject: str, numbers: Numbers, limits: Limits) -> Finding:
    """The method's logits keep to `limits`."""
    held = f"KL {numbers.kl:.2g}, max error {numbers.max_error / numbers.spread:.2g} of the spread"
    return found("logits", subject, list(_beyond(numbers, limits)), held=held)


def takes_effect(
    subject: str, *, changed: bool, adapter: Adapter | None, measured: Effect | None, limits: Limits
) -> Finding:
    """An adapter changes the base's output, in the direction and at the size of the reference's change.

    `adapter` and `measured` are None if its source was not given; then only that it changes anything is known.
    """
    problems = []
    nothing = adapter is not None and is_zero(adapter)
    if not changed and not nothing:
        problems.append("the adapter changes nothing: its logits are those of the base")
    if changed and nothing:
        problems.append("the adapter's weights are zero, and its logits are not those of the base")
    if measured is not None and measured.size < _WEAK and measured.exported_size > max(_WEAK, limits.tie):
        what = f"it moves the logits by {measured.exported_size:.2g} of their spread, in the reference by"
        problems.append(f"{what} {measured.size:.2g}: one of the two has another adapter")
    if changed and not nothing and measured is not None and measured.size >= _WEAK:
        most = largest_ratio(measured, limits)
        if not 1 - limits.effect <= measured.ratio <= most:
            limit = f"limit {1 - limits.effect:g} to {most:.3g}"
            what = f"its effect is {measured.ratio:.3g} times the reference's ({limit})"
            problems.append(f"{what}: its scaling (alpha, rank, rsLoRA, patterns, strength) is another")
        least = least_direction(measured, limits)
        if least < _BY_CHANCE and not problems:
            hidden = f"the quantized base is {measured.noise:.2g} of the spread from the reference, the adapter moves"
            why = f"{hidden} {measured.size:.2g}: whether its matrices are the right ones does not show in the logits"
            return unchecked("effect", subject, why)
        if not measured.direction >= least:
            what = f"its effect has cosine {measured.direction:.3g} with the reference's (limit {least:.3g})"
            problems.append(f"{what}: its matrices are others, or on other layers")
    return found("effect", subject, problems, held=_held(nothing=nothing, measured=measured))


def least_direction(measured: Effect, limits: Limits) -> float:
    """Return the smallest cosine that an honest effect has: that of `limits`, or less if the base's own quantization
    error is so large beside the effect that more cannot be expected.
    """
    return min(limits.direction, measured.direction_with(_MORE_NOISE * measured.noise))


def largest_ratio(measured: Effect, limits: Limits) -> float:
    """Return how many times the reference's effect an honest one may be: what `limits` says, and more where the base's
    own quantization error, which is seen in the effect, is so large beside it.
    """
    return limits.effect + measured.ratio_with(_MORE_NOISE * measured.noise)


def _held(*, nothing: bool, measured: Effect | None) -> str:
    if nothing:
        return "its weights are zero, and it changes nothing"
    if measured is None:
        return "it changes the output; its source was not given"
    if measured.size < _WEAK:
        return "it changes the output, too little for its size to be judged"
    return f"{measured.ratio:.4f} times the reference's effect, cosine {measured.direction:.4f}"


def _beyond(numbers: Numbers, limits: Limits) -> Iterator[str]:
    errors = (
        ("max error", numbers.max_error / numbers.spread, limits.max_error, " of the spread"),
        ("mean error", numbers.mean_error / numbers.spread, limits.mean_error, " of the spread"),
        ("KL", numbers.kl, limits.kl, ""),
    )
    for name, value, most, unit in errors:
        if most is not None and not value <= most:  # NaN is beyond every limit
            yield f"{name} {value:.3g}{unit} (limit {most:g})"
    for name, share, least in (
        ("top-1 agreement", numbers.top1, limits.top1),
        ("greedy agreement", numbers.greedy, limits.greedy),
    ):
        if not share >= least:
            yield f"{name} {share:.3g} (limit {least:g})"
