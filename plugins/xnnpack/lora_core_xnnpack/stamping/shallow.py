# ruff: noqa: TID253  this module is imported only while exporting, with torch already loaded
"""A base cut to a few of its layers, with weights of no meaning."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import attrs
import torch

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.models.base import BaseModel
from lora_core.models.outline import Outline
from lora_core.quant.policy import Assignment
from lora_core_xnnpack.stamping.elements import NotStampableError
from lora_core_xnnpack.streaming.base import StreamedBase
from lora_core_xnnpack.streaming.stand_in import StandInWeights, stand_in


@attrs.frozen(kw_only=True)
class LayeredBase:
    """A base whose layers are the list of modules at the path `blocks`.

    `weights` are those of all that is cut out of it.
    """

    base: StreamedBase
    blocks: str
    weights: StandInWeights = attrs.field(factory=StandInWeights, eq=False, repr=False)

    @classmethod
    def of(cls, base: StreamedBase) -> LayeredBase:
        """Find the list of the base's layers: the longest list of modules that is in no other.

        Raises `NotStampableError` if there is none.
        """
        found: dict[str, int] = {}
        for path, part in base.model.module.named_modules():
            if isinstance(part, torch.nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in found):
                found[path] = len(part)
        blocks = max(found, key=lambda path: found[path], default="")
        if not blocks:
            raise NotStampableError("the model has no list of layers")
        return cls(base=base, blocks=blocks)

    @property
    def layers(self) -> Sequence[torch.nn.Module]:
        """The layers of the base."""
        return list(self.base.model.module.get_submodule(self.blocks).children())

    def cut(self, keep: Sequence[int]) -> BaseModel:
        """Return a model of the layers `keep` with weights of no meaning, quantized as those of the base are.

        Its layers are called by their paths in it.
        """
        module = copy.deepcopy(_with_layers(self.base.model.module, self.blocks, keep))
        whole = self.base.model
        names = {path: name for name, path in whole.paths.items()}
        layers, schemes, origins = [], {}, {}
        for layer in whole.summary.layers:
            for path in self.paths(whole.paths[layer.name], keep):
                layers.append(attrs.evolve(layer, name=path, tied_to=None))
                origins[path] = whole.paths[layer.name]
                schemes[path] = self.base.assignment.schemes.get(names[whole.paths[layer.name]])
        sources = {
            mine: source for path, source in self.base.outline.sources.items() for mine in self.paths(path, keep)
        }
        model = attrs.evolve(
            whole,
            module=module,
            summary=attrs.evolve(whole.summary, layers=tuple(layers)),
            paths={layer.name: layer.name for layer in layers},
        )
        outline = Outline(base=model, sources=sources)
        cut = attrs.evolve(self.base, outline=outline, assignment=Assignment(schemes=schemes))
        return stand_in(cut, outline, self.weights, origins)

    def cut_plan(self, plan: SlotPlan, keep: Sequence[int]) -> SlotPlan:
        """Return what `plan` is for the model of the layers `keep`."""
        paths = self.base.model.paths
        return SlotPlan(
            slots=tuple(
                attrs.evolve(slot, module=path) for slot in plan.slots for path in self.paths(paths[slot.module], keep)
            )
        )

    def paths(self, path: str, keep: Sequence[int]) -> list[str]:
        """Return where the model of the layers `keep` has what the base has at `path`."""
        return paths_in_cut(path, self.blocks, keep)


def paths_in_cut(path: str, blocks: str, keep: Sequence[int]) -> list[str]:
    """Return where a module cut to the layers `keep` has what was at `path`; `blocks` is where its layers are."""
    prefix = f"{blocks}."
    if not path.startswith(prefix):
        return [path]
    number, _, inner = path.removeprefix(prefix).partition(".")
    return [f"{prefix}{new}.{inner}" for new, old in enumerate(keep) if old == int(number)]


def with_layers(model: BaseModel, blocks: str, keep: Sequence[int]) -> BaseModel:
    """Return `model`, whose layers are called by their paths, with the layers `keep` only; it shares its tensors."""
    layers = tuple(
        attrs.evolve(layer, name=path)
        for layer in model.summary.layers
        for path in paths_in_cut(layer.name, blocks, keep)
    )
    return attrs.evolve(
        model,
        module=_with_layers(model.module, blocks, keep),
        summary=attrs.evolve(model.summary, layers=layers),
        paths={layer.name: layer.name for layer in layers},
    )


def _with_layers(module: torch.nn.Module, blocks: str, keep: Sequence[int]) -> torch.nn.Module:
    """Return `module` with the layers `keep` only; what is not on the way to them is shared."""
    root = owner = _opened(module)
    *way, last = blocks.split(".")
    for name in way:
        owner._modules[name] = owner = _opened(owner.get_submodule(name))
    layers = _opened(owner.get_submodule(last))
    every = list(layers._modules.values())
    layers._modules = {str(new): every[old] for new, old in enumerate(keep)}
    owner._modules[last] = layers
    for name, value in list(vars(owner).items()):
        if type(value) is int and value == len(every) and "layer" in name:
            setattr(owner, name, len(keep))  # how many layers there are
    return root


def _opened(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of `module` whose children can be replaced without the original's changing."""
    opened = copy.copy(module)
    opened._modules = dict(module._modules)
    return opened
