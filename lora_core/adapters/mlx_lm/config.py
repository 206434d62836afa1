"""`adapter_config.json` as MLX-LM writes it: the arguments of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from lora_core.errors import AdapterError, Problem

_CONFIG = "Take the adapter_config.json that mlx_lm.lora wrote beside the weights."
_FULL = "It holds trained weights of the whole model: fuse it with mlx_lm.fuse and export the result with --model."
_AS_LORA = "Train with --fine-tune-type lora, or fuse it with mlx_lm.fuse and export the result with --model."


@attrs.frozen(kw_only=True)
class MlxLmConfig:
    """What of the configuration changes the mathematics: `out = base(x) + scale * (x @ lora_a) @ lora_b`.

    `scale` is that of `LoRALinear` in mlx_lm/tuner/lora.py. Until June 2024 it was multiplied by `alpha / rank`; since
    then an `alpha` that is left in the configuration is ignored. Since October 2024 a configuration has `num_layers`.
    """

    scale: float
    base_model: str | None

    @classmethod
    def from_mlx_dict(cls, config: Mapping[str, Any]) -> MlxLmConfig:
        """Convert the contents of `adapter_config.json`; raises `AdapterError` with every problem."""
        kind = config.get("fine_tune_type", "lora")
        if kind != "lora":
            raise AdapterError(_other_kind(kind))
        parameters = config.get("lora_parameters")
        if not isinstance(parameters, Mapping):
            what = "It does not say the scale of the update"
            raise AdapterError(what, where="lora_parameters", remedy=_CONFIG)
        scale, alpha, rank = (parameters.get(field) for field in ("scale", "alpha", "rank"))
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            what = f"Its field scale must be a finite number, not {scale!r}"
            raise AdapterError(what, where="lora_parameters.scale", remedy=_CONFIG)
        if alpha is not None and alpha != rank and "num_layers" not in config:
            raise AdapterError(
                f"It is of an MLX-LM of which some versions multiplied scale by alpha / rank ({alpha} / {rank}) and "
                "later ones did not",
                where="lora_parameters.alpha",
                remedy="If it was trained after June 2024, remove alpha; else multiply scale by alpha / rank, and then "
                "remove alpha.",
            )
        model = config.get("model")
        return cls(scale=float(scale), base_model=model if isinstance(model, str) and model else None)


def _other_kind(kind: object) -> Problem:
    if kind == "full":
        return Problem(what="It is a full fine-tune of MLX-LM, not an adapter", where="fine_tune_type", remedy=_FULL)
    if kind == "dora":
        return Problem(what="It is a DoRA adapter of MLX-LM", where="fine_tune_type", remedy=_AS_LORA)
    what = f"It is a fine-tune of MLX-LM of type {kind!r}, which is not read"
    return Problem(what=what, where="fine_tune_type", remedy=_AS_LORA)
