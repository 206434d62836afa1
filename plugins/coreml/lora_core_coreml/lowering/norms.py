"""RMSNorm that stays finite in float16.

ExecuTorch's RMSNorm squares in float32, but a CoreML conversion to float16 drops the cast, and x*x overflows from
|x| = 256 on, which the residual stream of a deep model can pass. Dividing by the largest magnitude first
keeps every intermediate at most 1 and is the same function of x:

    x / sqrt(mean(x^2) + eps) = y / sqrt(mean(y^2) + (sqrt(eps) / m)^2),   y = x / m,   m = max(max|x|, floor)
"""

from __future__ import annotations

import torch  # noqa: TID253 - this module is only imported to lower a model

# Below this magnitude nothing needs scaling; it keeps sqrt(eps) / m finite for a zero row (padding tokens).
_FLOOR = 2.0**-6


class ScaledRMSNorm(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """RMSNorm over the last dimension with every intermediate within float16's range."""

    def __init__(self, weight: torch.Tensor | None, eps: float) -> None:
        super().__init__()
        # Tensors, not numbers: coremltools 9.0 takes no number in clamp_min, and turns number / tensor into an
        # `inverse` that adds 1e-4 to the divisor.
        self.register_buffer("floor", torch.tensor([_FLOOR]))
        self.register_buffer("root_eps", torch.tensor([eps**0.5]))
        self.weight = None if weight is None else torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized `x`, times the weight if there is one."""
        largest = torch.maximum(torch.amax(torch.abs(x), dim=-1, keepdim=True), self.floor)
        scaled = x / largest
        root_eps = self.root_eps / largest
        mean = torch.mean(scaled * scaled, dim=-1, keepdim=True)
        normalized = scaled * torch.rsqrt(mean + root_eps * root_eps)
        return normalized if self.weight is None else normalized * self.weight


def replace_norms(module: torch.nn.Module) -> None:
    """Replace every RMSNorm of ExecuTorch or torch in `module` by `ScaledRMSNorm` with the same weight."""
    from executorch.examples.models.llama.norm import RMSNorm, ScalelessRMSNorm

    for name, norm in list(module.named_modules()):
        if not isinstance(norm, RMSNorm | ScalelessRMSNorm | torch.nn.RMSNorm):
            continue
        weight = getattr(norm, "weight", None)
        if weight is not None:
            weight = scaled_weight(weight.detach(), offset=adds_one(norm))
        eps = norm.eps if norm.eps is not None else torch.finfo(torch.float32).eps
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, ScaledRMSNorm(weight, eps))


def adds_one(norm: torch.nn.Module) -> bool:
    """Say whether a norm scales by one more than its weight."""
    return bool(getattr(norm, "add_unit_offset", False))


def scaled_weight(weight: torch.Tensor, *, offset: bool) -> torch.Tensor:
    """Return the weight of the `ScaledRMSNorm` in place of a norm; `offset` is what `adds_one` says of that."""
    return 1.0 + weight if offset else weight
