"""Rotary position embedding: what the configuration says, and the frequencies that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import numpy as np

from lora_core.elementary import Float32, cosines, powers, sines
from lora_core.errors import Problem

DEFAULT_THETA = 10000.0
SUPPORTED_TYPES = ("default", "linear", "llama3", "longrope", "yarn", "proportional")
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": (),
    "yarn": ("factor",),
    "proportional": (),
}
_REASONS = {
    "dynamic": ": its frequencies change while a text grows, which a table of positions cannot",
}
_LAYER_TYPES = ("full_attention", "sliding_attention")


@attrs.frozen(kw_only=True)
class Rope:
    """Parameters of the rotary embedding, as transformers names them.

    `linear` divides every frequency by `factor`. `llama3` divides those of long wavelength, leaves those of short
    wavelength, and blends between, relative to `original_context_len`. `yarn` does the like, along a ramp from the
    frequency with `beta_fast` turns in `original_context_len` tokens to that with `beta_slow`, both in whole
    frequencies if it `truncates`. `longrope` divides each by a factor of its own: by `long_factors` where the tables
    are longer than `original_context_len`, else by `short_factors`. Cosines and sines are multiplied by `scale`. `part`
    is the share of a head's values that is rotated, from the first on; of a `proportional` one it is the share of the
    frequencies of a whole head that is not zero.
    """

    theta: float = DEFAULT_THETA
    kind: Literal["default", "linear", "llama3", "longrope", "yarn", "proportional"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_len: int = 8192
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncates: bool = True
    scale: float = 1.0
    part: float = 1.0

    def width(self, head_dim: int) -> int:
        """Return how many values of a head are rotated."""
        return head_dim if self.kind == "proportional" else int(head_dim * self.part)

    def frequencies(self, head_dim: int, length: int = 0) -> Float32:
        """Return half as many inverse frequencies as values are rotated, float32, computed in the order of
        transformers' `modeling_rope_utils.py`, for tables of `length` positions.

        transformers' own differ by at most a unit in the last place, and from processor to processor: torch's power
        is not correctly rounded, this one is.
        """
        width = self.width(head_dim)
        if self.kind == "proportional":
            return self._proportional(head_dim)
        exponents = np.arange(0, width, 2).astype(np.float32) / np.float32(width)
        wavelengths = powers(float(np.float32(self.theta)), exponents.tolist())
        if self.kind == "longrope":
            chosen = self.long_factors if length > self.original_context_len else self.short_factors
            return np.float32(1.0) / (np.array(chosen, np.float32) * wavelengths)
        plain = np.float32(1.0) / wavelengths
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        if self.kind == "llama3":
            return self._blend(plain)
        if self.kind == "yarn":
            kept = np.float32(1.0) - self._ramp(width)
            return np.float32(1.0) / (np.float32(self.factor) * wavelengths) * (np.float32(1.0) - kept) + plain * kept
        return plain

    def _proportional(self, head_dim: int) -> Float32:
        """Return the frequencies of a whole head, zero beyond the share that turns (transformers
        `_compute_proportional_rope_parameters`).
        """
        turning = int(self.part * head_dim // 2)
        exponents = np.arange(0, 2 * turning, 2).astype(np.float32) / np.float32(head_dim)
        turned = np.float32(1.0) / powers(float(np.float32(self.theta)), exponents.tolist())
        whole = np.zeros(head_dim // 2, np.float32)
        whole[:turning] = turned / np.float32(self.factor)
        return whole

    def _ramp(self, width: int) -> Float32:
        """Return how far each frequency of `width` rotated values is divided by `factor`, from 0 to 1
        (arXiv 2309.00071; transformers `_compute_yarn_parameters`).
        """
        turns = (self.original_context_len / (beta * 2 * math.pi) for beta in (self.beta_fast, self.beta_slow))
        low, high = (width * math.log(each) / (2 * math.log(self.theta)) for each in turns)
        if self.truncates:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        if low == high:
            high += 0.001
        places = (np.arange(width // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        ramp: Float32 = np.clip(places, np.float32(0.0), np.float32(1.0))
        return ramp

    def _blend(self, plain: Float32) -> Float32:
        # As torch computes it: each number is rounded to float32 before it meets an array, and a number divided by an
        # array is the array's reciprocal times the number (`Tensor.__rtruediv__`).
        one, factor = np.float32(1.0), np.float32(self.factor)
        wavelength = one / plain * np.float32(2 * math.pi)
        long = wavelength > np.float32(self.original_context_len / self.low_freq_factor)
        short = wavelength < np.float32(self.original_context_len / self.high_freq_factor)
        scaled = np.where(long, plain / factor, plain)
        turns = one / wavelength * np.float32(self.original_context_len)
        band = np.float32(self.high_freq_factor - self.low_freq_factor)
        smooth = (turns - np.float32(self.low_freq_factor)) / band
        smoothed = (one - smooth) * scaled / factor + smooth * scaled
        return np.where(~short & ~long, smoothed, scaled)

    def divisors(self, head_dim: int) -> list[float] | None:
        """Return by what each plain frequency is divided, or None if by nothing."""
        if self.kind == "default":
            return None
        plain, own = (rope.frequencies(head_dim).tolist() for rope in (Rope(theta=self.theta), self))
        return [dividend / divisor for dividend, divisor in zip(plain, own, strict=True)]

    def tables(self, head_dim: int, length: int) -> tuple[Float32, Float32]:
        """Return cosines and sines of positions 0 to `length`, each (length, rotated values), float32, correctly
        rounded.

        They are stored, so they must not depend on the processor, as torch's do.
        """
        angles = np.outer(np.arange(length).astype(np.float32), self.frequencies(head_dim, length))
        scale = np.float32(self.scale)
        cos, sin = cosines(angles) * scale, sines(angles) * scale
        return np.concatenate((cos, cos), axis=-1), np.concatenate((sin, sin), axis=-1)


def read_rope(
    config: Mapping[str, Any], context_len: int, where: str, *, head_dim: int = 0, partial: bool = False
) -> tuple[Rope, list[Problem]]:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before), as transformers does.

    Of both spellings `rope_scaling` wins; what the dictionary leaves out comes from the top level. A `head_dim` is
    needed for scalings that say something of each frequency; `partial` says that a part of a head may be rotated.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
        return Rope(), [
            Problem(
                what="Rotary embeddings that differ from layer to layer are not supported",
                where=f"{where}: rope_parameters",
            )
        ]
    return _rope(given, config, context_len, head_dim, where, partial=partial)


def read_ropes(
    config: Mapping[str, Any],
    context_len: int,
    where: str,
    *,
    head_dim: int,
    local_theta: float,
    local_head_dim: int | None = None,
) -> tuple[Rope, Rope, list[Problem]]:
    """Read the rotary embeddings of a decoder whose layers with a window have one of their own: that of the others, and
    theirs.

    Either `rope_parameters` has both by type of layer, or `rope_scaling` is that of the others and
    `rope_local_base_freq` (else `local_theta`) the base of theirs, as transformers' Gemma 3 has it. `local_head_dim` is
    the width of their heads, if that is another.
    """
    given = config.get("rope_parameters") or {}
    if isinstance(given, Mapping) and given.keys() & set(_LAYER_TYPES):
        both = [given.get(kind) or {} for kind in _LAYER_TYPES]
    else:
        own = config.get("rope_local_base_freq") or local_theta
        both = [config.get("rope_scaling") or given, {"rope_theta": own}]
    if not all(isinstance(each, Mapping) for each in both):
        return Rope(), Rope(), [Problem(what="rope_parameters is no table", where=f"{where}: rope_parameters")]
    both[1] = {"rope_theta": local_theta, **both[1]}
    widths = (head_dim, head_dim if local_head_dim is None else local_head_dim)
    (others, problems), (own, more) = (
        _rope(each, config, context_len, width, where) for each, width in zip(both, widths, strict=True)
    )
    return others, own, problems + more


def _rope(
    parameters: Mapping[str, Any],
    config: Mapping[str, Any],
    context_len: int,
    head_dim: int,
    where: str,
    *,
    partial: bool = False,
) -> tuple[Rope, list[Problem]]:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in ("su", "yarn") and "short_factor" in parameters and "long_factor" in parameters:
        kind = "longrope"  # Phi-3's first names for it, which transformers reads so
    part = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    part = 1.0 if part is None else part
    problems = _check(parameters, kind, where)
    if kind == "proportional":
        problems += _check_share(part, parameters.get("factor"), where)
    elif kind in SUPPORTED_TYPES:
        problems = _check_part(part, head_dim if partial else 0, where) + problems
    if problems:
        return Rope(), problems
    original = config.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings")
    rope = Rope(
        theta=float(parameters.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA),
        kind=kind,
        factor=float(parameters.get("factor") or 1.0),
        low_freq_factor=float(parameters.get("low_freq_factor", 1.0)),
        high_freq_factor=float(parameters.get("high_freq_factor", 4.0)),
        original_context_len=int(original or context_len),
        part=float(part),
    )
    if kind == "yarn":
        return _yarn(rope, parameters, where)
    if kind != "longrope":
        return rope, []
    return _long(rope, parameters, context_len, head_dim, where)


def _yarn(rope: Rope, parameters: Mapping[str, Any], where: str) -> tuple[Rope, list[Problem]]:
    """Return `rope` with what YaRN says besides; what is left out, null or 0 is as transformers has it."""
    names = ("mscale", "mscale_all_dim", "beta_fast", "beta_slow")
    told = {name: parameters[name] for name in names if parameters.get(name)}
    if parameters.get("attention_factor") is not None:
        told["attention_factor"] = parameters["attention_factor"]
    wrong = [name for name, value in told.items() if not isinstance(value, int | float) or value <= 0]
    if wrong or rope.factor <= 0 or rope.theta <= 1:
        named = ", ".join(wrong) or "factor and rope_theta"
        return rope, [Problem(what=f"YaRN needs positive numbers: {named}", where=f"{where}: rope_parameters")]

    def scale(times: float) -> float:
        return 0.1 * times * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    whole = scale(1.0)
    if "mscale" in told and "mscale_all_dim" in told:
        whole = scale(told["mscale"]) / scale(told["mscale_all_dim"])
    return attrs.evolve(
        rope,
        beta_fast=float(told.get("beta_fast", 32.0)),
        beta_slow=float(told.get("beta_slow", 1.0)),
        truncates=bool(parameters.get("truncate", True)),
        scale=float(told.get("attention_factor", whole)),
    ), []


def _long(
    rope: Rope, parameters: Mapping[str, Any], context_len: int, head_dim: int, where: str
) -> tuple[Rope, list[Problem]]:
    """Return `rope` with what LongRoPE says besides (arXiv 2402.13753; transformers `_compute_longrope_parameters`)."""
    factors = {}
    for name in ("short_factor", "long_factor"):
        found = parameters.get(name)
        wanted = rope.width(head_dim) // 2
        if not isinstance(found, list) or len(found) != wanted or not all(isinstance(x, int | float) for x in found):
            what = f"{name} must have a number for each of the {wanted} frequencies"
            return rope, [Problem(what=what, where=f"{where}: rope_parameters.{name}")]
        factors[name] = tuple(map(float, found))
    ratio = parameters.get("factor") or context_len / rope.original_context_len
    scale = parameters.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(ratio) / math.log(rope.original_context_len)) if ratio > 1 else 1.0
    return attrs.evolve(
        rope, short_factors=factors["short_factor"], long_factors=factors["long_factor"], scale=float(scale)
    ), []


def _check_part(part: object, head_dim: int, where: str) -> list[Problem]:
    if part in (1, 1.0):
        return []
    if head_dim and isinstance(part, int | float) and 0 < part < 1 and int(head_dim * part) % 2 == 0:
        return []
    what = f"Partial rotary embeddings (partial_rotary_factor={part}) are not supported"
    return [Problem(what=what, where=f"{where}: partial_rotary_factor")]


def _check_share(part: object, factor: object, where: str) -> list[Problem]:
    wrong = not isinstance(part, int | float) or not 0 <= part <= 1
    if not wrong and (factor is None or (isinstance(factor, int | float) and factor > 0)):
        return []
    what = "Proportional rotary embeddings need a partial_rotary_factor from 0 to 1 and a positive factor"
    return [Problem(what=what, where=f"{where}: rope_parameters")]


def _check(parameters: Mapping[str, Any], kind: object, where: str) -> list[Problem]:
    if kind not in SUPPORTED_TYPES:
        return [
            Problem(
                what=f"Rotary embedding type {kind!r} is not supported{_REASONS.get(str(kind), '')}. "
                f"Supported: {', '.join(SUPPORTED_TYPES)}",
                where=f"{where}: rope_parameters.rope_type",
            )
        ]
    missing = [name for name in _REQUIRED[str(kind)] if not isinstance(parameters.get(name), int | float)]
    if not missing:
        return []
    return [
        Problem(
            what=f"Rotary embedding type {kind!r} needs {', '.join(missing)}, which the configuration lacks",
            where=f"{where}: rope_parameters",
        )
    ]
