"""LoRA injection: wrap the slots' linear layers of any `nn.Module`, and take the wrapping off again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch  # noqa: TID253 - the module defines an nn.Module; nothing imports it before weights are loaded

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.errors import AdapterError, Problem
from lora_core.models.base import LayerInfo


class LoraLinear(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """`out = base(x) + lora_b(lora_a(x))`: a linear layer with a low-rank update beside it.

    `base` is the wrapped layer, untouched (it may be quantized). `lora_a` is (rank, in_features), `lora_b`
    (out_features, rank) and already scaled: the graph holds no scalar that depends on the adapter. `weight` and
    `bias` are the base's, and state dicts that name them without `base.` still load.
    """

    def __init__(self, base: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> None:
        """Wrap `base` with the matrices `a` and `b`."""
        super().__init__()
        self.base = base
        self.lora_a = _linear(a)
        self.lora_b = _linear(b)
        self.train(base.training)

    @property
    def weight(self) -> Any:
        """The weight of the base layer."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The bias of the base layer, or None."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """The width of the input."""
        return int(self.lora_a.in_features)

    @property
    def out_features(self) -> int:
        """The width of the output."""
        return int(self.lora_b.out_features)

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return int(self.lora_a.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base's output plus the low-rank update."""
        out: torch.Tensor = self.base(x) + self.lora_b(self.lora_a(x))
        return out

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Hook of nn.Module.load_state_dict, which calls it positionally.
        for name in ("weight", "bias"):
            if prefix + name in state_dict and f"{prefix}base.{name}" not in state_dict:
                state_dict[f"{prefix}base.{name}"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def inject(
    module: torch.nn.Module, plan: SlotPlan, layers: Sequence[LayerInfo], values: Mapping[str, tuple[Any, Any]]
) -> torch.nn.Module:
    """Wrap the layer of every slot of `plan` in `module`, in place, and return the module.

    `layers` map slot names to paths in `module` (`BaseModel.summary.layers`). `values` hold for every slot's module A
    (rank, in_features) and B (out_features, rank), NumPy or torch, zero-padded to the slot's rank and with the scaling
    folded into B; their memory is used as it is where it is float32 and contiguous. The returned module is another
    object only if the slot is the module itself. Raises `AdapterError` with every slot that does not fit, and then
    leaves `module` as it was.
    """
    paths = {layer.name: layer.path for layer in layers if layer.kind == "linear"}
    problems: list[Problem] = []
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for slot in plan.slots:
        found = _check(module, slot, paths, values)
        problems += found
        if not found:
            a, b = values[slot.module]
            pairs[paths[slot.module]] = (_matrix(a), _matrix(b))
    planned = {slot.module for slot in plan.slots}
    problems += [Problem(what=f"There is no slot for the values of {name}") for name in values if name not in planned]
    if problems:
        raise AdapterError(problems)
    for path, (a, b) in pairs.items():
        module = _replace(module, path, LoraLinear(module.get_submodule(path), a, b))
    return module


def eject(module: torch.nn.Module) -> torch.nn.Module:
    """Put every wrapped layer back in place, the very object that `inject` found, and return the module."""
    wrapped = [(path, layer.base) for path, layer in lora_layers(module)]
    for path, base in wrapped:
        module = _replace(module, path, base)
    return module


def lora_layers(module: torch.nn.Module) -> Iterable[tuple[str, LoraLinear]]:
    """Yield the wrapped layers of `module` with their paths, in module order."""
    for path, layer in module.named_modules():
        if isinstance(layer, LoraLinear):
            yield path, layer


def _check(
    module: torch.nn.Module, slot: Slot, paths: Mapping[str, str], values: Mapping[str, tuple[Any, Any]]
) -> list[Problem]:
    """Return what keeps `slot` from being filled."""
    if slot.module not in paths:
        return [Problem(what=f"Slot {slot.module} is no linear layer of the model")]
    if slot.module not in values:
        return [Problem(what=f"Slot {slot.module} has no values")]
    base = module.get_submodule(paths[slot.module])
    if isinstance(base, LoraLinear):
        return [Problem(what=f"Slot {slot.module} already carries LoRA", remedy="Eject it first.")]
    wanted = ((slot.rank, slot.in_features), (slot.out_features, slot.rank))
    return [
        Problem(what=f"{letter} of slot {slot.module} has shape {tuple(value.shape)}; the slot needs {shape}")
        for letter, value, shape in zip("AB", values[slot.module], wanted, strict=True)
        if tuple(value.shape) != shape
    ]


def _matrix(value: Any) -> torch.Tensor:
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
    return tensor.detach().to(torch.float32).contiguous()


def _linear(weight: torch.Tensor) -> torch.nn.Linear:
    with torch.device("meta"):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return linear


def _replace(module: torch.nn.Module, path: str, layer: torch.nn.Module) -> torch.nn.Module:
    if not path:
        return layer
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)
    return module
