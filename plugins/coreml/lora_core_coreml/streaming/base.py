"""A base that is read when it is written: a module of its structure, and its weights as they are stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch  # noqa: TID253 - this module is only imported to lower a model

from lora_core.backend import ExportJob
from lora_core.layers import LayerInfo
from lora_core.pte import Buffer
from lora_core.quant.policy import Assignment, Scheme
from lora_core.tensors import LazyTensor, Sliceable
from lora_core_coreml import quant
from lora_core_coreml.lowering import base, norms
from lora_core_coreml.lowering.base import PreparedBase
from lora_core_coreml.lowering.breaks import BlockWithBreak
from lora_core_coreml.lowering.splitting import SplitLinear
from lora_core_coreml.quiet import quiet
from lora_core_coreml.weightless.forms import TensorForm, form_bytes, form_size, is_uniform, parts_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BLOCK_BYTES = 1 << 24
"""Float32 bytes that are read and quantized at a time; torchao's quantization takes several times as much."""
_FEW_BYTES = 1 << 14
"""Of the first block: enough to see that a tensor is not one value all over."""


@attrs.frozen(kw_only=True)
class _Place:
    """Where a parameter is read: rows `start` to `stop` of `source`, to be quantized by `scheme` as part of `layer`."""

    source: LazyTensor
    start: int
    stop: int
    adds_one: bool
    quantized: tuple[LayerInfo, Scheme] | None


@attrs.frozen(kw_only=True, slots=False)
class StreamedWeights:
    """The `Weights` of a base that is not held; `prepared` is the base with other values of the same shapes.

    Of a tensor whose values are all one, `prepared` has that value.
    """

    prepared: PreparedBase
    places: Mapping[str, _Place]

    @classmethod
    def of(cls, job: ExportJob) -> StreamedWeights | None:
        """Return the base of `job`, None if its source cannot give it without its weights."""
        outline = job.model.outline(base.model_options(job))
        if outline is None or any(not source.shape or 0 in source.shape for source in outline.sources.values()):
            return None
        offsets = _offsets(outline.base.module) if job.options.float16 else frozenset()
        made = base.prepared(job, outline.base, quantize=False, sources=outline.sources)
        schemes = _schemes(outline.base.summary.layers, outline.base.paths, made.assignment)
        places = {}
        for path, _ in made.module.named_parameters(remove_duplicate=False):
            found = _place(made.module, path, outline.sources, offsets, schemes)
            if found is None:
                return None
            places[path] = found
        weights = cls(prepared=made, places=places)
        weights._give_values()
        return weights

    def size(self, form: TensorForm) -> int:
        """Return how many bytes a tensor in `form` has."""
        parent, _, name = form.path.rpartition(".")
        parameter: Any = self.prepared.module.get_submodule(parent)._parameters[name]
        return form_size(parts_of(parameter)[form.part], form)

    def pieces(self, form: TensorForm) -> Iterator[Buffer]:
        """Yield the bytes of a tensor in `form`, some rows at a time."""
        for block in self._blocks(self.places[form.path]):
            yield form_bytes(parts_of(block)[form.part], form)

    def _blocks(self, place: _Place) -> Iterator[torch.Tensor]:
        for rows in _rows(place):
            tensor = norms.scaled_weight(torch.from_numpy(rows), offset=place.adds_one).to(self.prepared.dtype)
            if place.quantized is not None:
                layer, scheme = place.quantized
                with quiet():
                    tensor = quant.quantized(tensor, layer.kind, scheme)
            yield tensor

    def _give_values(self) -> None:
        """Give the parameters of the module, which are on the meta device, values that take no memory."""
        given: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        module = self.prepared.module
        for path, parameter in list(module.named_parameters(remove_duplicate=False)):
            place = self.places[path]
            made = given.get(parameter) if place.quantized is None else None
            if made is None:
                made = torch.nn.Parameter(self._values(place), requires_grad=False)
            if place.quantized is None:
                given[parameter] = made
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, made)

    def _values(self, place: _Place) -> torch.Tensor:
        blocks = self._blocks(place)
        first = next(blocks)
        parts = parts_of(first)
        # Schemes are symmetric (`quant.policy_problems`), so zero points are 0.
        open_ = {name for name, part in parts.items() if name != "zero_point" and is_uniform(part)}
        while open_ and (block := next(blocks, None)) is not None:
            open_ = {name for name in open_ if is_uniform(_ends(parts[name], parts_of(block)[name]))}
        uniform = {*open_, "zero_point"}
        rows = place.stop - place.start
        values = {name: _values_like(part, rows, uniform=name in uniform) for name, part in parts.items()}
        if "" in values:
            return values[""]
        fields = {name: getattr(first, name) for name in first.tensor_attribute_names}
        made: torch.Tensor = type(first)(**values, **fields)
        return made


def _ends(first: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """Return a tensor that is uniform if `first`, which is uniform, and `later` together are."""
    return torch.cat([first.reshape(-1)[:1], later.reshape(-1)])


def _values_like(part: torch.Tensor, rows: int, *, uniform: bool) -> torch.Tensor:
    """Return a tensor of `rows` rows like `part`, which has some: a view of few values, all one if it is `uniform`."""
    shape = (rows, *part.shape[1:])
    if uniform:
        return part[(slice(0, 1),) * part.dim()].clone().expand(shape)
    width = part[0].numel()
    if width > 1:
        return (torch.arange(width) % 2).to(part.dtype).view(1, *shape[1:]).expand(shape)
    return (torch.arange(rows) % 2).to(part.dtype).view(shape)


def _offsets(module: torch.nn.Module) -> frozenset[str]:
    """Return the weights to which a norm adds one before it is replaced."""
    return frozenset(f"{path}.weight" for path, part in module.named_modules() if norms.adds_one(part))


def _schemes(
    layers: Sequence[LayerInfo], paths: Mapping[str, str], assignment: Assignment
) -> dict[str, tuple[LayerInfo, Scheme]]:
    """Return how layers are quantized, by their paths."""
    found = {}
    for layer in layers:
        scheme = assignment.schemes.get(layer.name)
        if scheme is not None and quant.quantizes(scheme):
            found[paths[layer.name]] = (layer, scheme)
    return found


def _place(
    module: torch.nn.Module,
    path: str,
    sources: Mapping[str, LazyTensor],
    offsets: frozenset[str],
    schemes: Mapping[str, tuple[LayerInfo, Scheme]],
) -> _Place | None:
    """Return where a parameter of the prepared `module` is read, None if no source fills it."""
    *names, last = path.split(".")
    original: list[str] = []
    start = stop = 0
    part: Any = module
    for position, name in enumerate(names):
        if isinstance(part, SplitLinear):
            rows = part.out_features // len(part.parts)
            start = int(names[position + 1]) * rows
            stop = start + rows
            break
        if not isinstance(part, BlockWithBreak):
            original.append(name)
        part = getattr(part, name)
    source = sources.get(".".join([*original, last]))
    if source is None:
        return None
    layer = ".".join(original)
    return _Place(
        source=source,
        start=start,
        stop=stop or source.shape[0],
        adds_one=f"{layer}.{last}" in offsets,
        quantized=schemes.get(layer) if last == "weight" else None,
    )


def _rows(place: _Place) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the rows of a place, a few and then more at a time: an even number, since two 4-bit values share a byte."""
    read = place.source.read_rows if isinstance(place.source, Sliceable) else _reader(place.source.read())
    row_bytes = 4 * max(1, math.prod(place.source.shape[1:]))
    start, limit = place.start, _FEW_BYTES
    while start < place.stop:
        end = min(start + max(2, limit // row_bytes // 2 * 2), place.stop)
        yield read(start, end)
        start, limit = end, _BLOCK_BYTES


def _reader(whole: npt.NDArray[np.float32]) -> Callable[[int, int], npt.NDArray[np.float32]]:
    return lambda start, stop: whole[start:stop]
