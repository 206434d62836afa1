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
SUPPORTED_TYPES = ("default", "linear", "llama3")
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


@attrs.frozen(kw_only=True)
class Rope:
    """Parameters of the rotary embedding, as transformers names them.

    `linear` divides every frequency by `factor`. `llama3` divides those of long wavelength, leaves those of short
    wavelength, and blends between, relative to `original_context_len`. Neither depends on the sequence length.
    """

    theta: float = DEFAULT_THETA
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_len: int = 8192

    def frequencies(self, head_dim: int) -> Float32:
        """Return the `head_dim / 2` inverse frequencies in float32, computed in the order of transformers'
        `modeling_rope_utils.py`.

        transformers' own differ by at most a unit in the last place, and from processor to processor: torch's power
        is not correctly rounded, this one is.
        """
        exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
        plain = np.float32(1.0) / powers(float(np.float32(self.theta)), exponents.tolist())
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        if self.kind == "llama3":
            return self._blend(plain)
        return plain

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
        """Return cosines and sines of positions 0 to `length`, each (length, head_dim), float32, correctly rounded.

        They are stored, so they must not depend on the processor, as torch's do.
        """
        angles = np.outer(np.arange(length).astype(np.float32), self.frequencies(head_dim))
        cos, sin = cosines(angles), sines(angles)
        return np.concatenate((cos, cos), axis=-1), np.concatenate((sin, sin), axis=-1)


def read_rope(config: Mapping[str, Any], context_len: int, where: str) -> tuple[Rope, list[Problem]]:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before), as transformers does.

    Of both spellings `rope_scaling` wins; what the dictionary leaves out comes from the top level.
    """
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping) or any(isinstance(value, Mapping) for value in parameters.values()):
        return Rope(), [
            Problem(
                what="Rotary embeddings that differ from layer to layer are not supported",
                where=f"{where}: rope_parameters",
            )
        ]
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    problems = _check(parameters, config, kind, where)
    if problems:
        return Rope(), problems
    original = config.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings")
    rope = Rope(
        theta=float(parameters.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA),
        kind=kind,
        factor=float(parameters.get("factor", 1.0)),
        low_freq_factor=float(parameters.get("low_freq_factor", 1.0)),
        high_freq_factor=float(parameters.get("high_freq_factor", 4.0)),
        original_context_len=int(original or context_len),
    )
    return rope, []


def _check(parameters: Mapping[str, Any], config: Mapping[str, Any], kind: object, where: str) -> list[Problem]:
    if kind not in SUPPORTED_TYPES:
        return [
            Problem(
                what=f"Rotary embedding type {kind!r} is not supported. Supported: {', '.join(SUPPORTED_TYPES)}",
                where=f"{where}: rope_parameters.rope_type",
            )
        ]
    problems = []
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        problems.append(
            Problem(
                what=f"Partial rotary embeddings (partial_rotary_factor={partial}) are not supported",
                where=f"{where}: partial_rotary_factor",
            )
        )
    missing = [name for name in _REQUIRED[str(kind)] if not isinstance(parameters.get(name), int | float)]
    if missing:
        problems.append(
            Problem(
                what=f"Rotary embedding type {kind!r} needs {', '.join(missing)}, which the configuration lacks",
                where=f"{where}: rope_parameters",
            )
        )
    return problems
