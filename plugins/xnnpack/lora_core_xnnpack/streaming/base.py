"""The base of a job, read and quantized a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.backend import ExportJob
from lora_core.layers import LayerInfo
from lora_core.models.base import BaseModel
from lora_core.models.outline import Outline
from lora_core.preparation.rounded import RoundedLayers
from lora_core.quant.policy import Assignment, Scheme
from lora_core.tensors import row_blocks
from lora_core_xnnpack.cache.forms import Form, named_tensors
from lora_core_xnnpack.lowering.base import outlined
from lora_core_xnnpack.quant import quantized_layer, rounded_weight

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 1 << 24
"""Float32 bytes that are read and quantized at a time; torchao's quantization takes several times as much."""
Tensors = Mapping[str, Any]
"""Torch tensors (or some of their rows) by path in the module."""


@attrs.frozen(kw_only=True, slots=False)
class StreamedBase:
    """A base that is read when it is written: its structure, and how each layer is quantized.

    `rounded` are the layers whose integers and scales have been found already.
    """

    outline: Outline
    assignment: Assignment
    scale_search: str
    rounded: RoundedLayers | None = None

    @classmethod
    def of(cls, job: ExportJob) -> StreamedBase | None:
        """Return the base of `job`, None if its source cannot give it without its weights."""
        outline = outlined(job)
        if outline is None:
            return None
        assignment = job.policy.assign(outline.base.summary.layers)
        return cls(outline=outline, assignment=assignment, scale_search=job.options.scale_search)

    @property
    def model(self) -> BaseModel:
        """The base, its parameters on the meta device."""
        return self.outline.base

    @cached_property
    def quantized(self) -> Mapping[str, tuple[LayerInfo, Scheme]]:
        """The layers that are quantized, by their paths in the module."""
        schemes = self.assignment.schemes
        return {
            self.model.paths[layer.name]: (layer, scheme)
            for layer in self.model.summary.layers
            if (scheme := schemes.get(layer.name)) is not None
        }

    def same(self, form: Form) -> Form:
        """Return the form that stands for all that are equal to `form` in every base: tied parameters have one."""
        source = self.outline.sources.get(form.path)
        if source is None or not self.reads_alone(form.path):
            return form
        return attrs.evolve(form, path=self._first[source.name])

    def reading(self, form: Form) -> str:
        """Return what must be read for `form`, as `blocks` takes it: a quantized layer, else a single tensor."""
        return form.path if self.reads_alone(form.path) else form.path.rpartition(".")[0]

    def reads_alone(self, path: str) -> bool:
        """Say whether the tensor at `path` is stored as it is, and not made by quantizing a layer."""
        layer, _, name = path.rpartition(".")
        return layer not in self.quantized or name == "bias"

    def blocks(self, reading: str) -> Iterator[Tensors]:
        """Yield the tensors of what `reading` names, some rows at a time: all those that a quantized layer has of these
        rows, or the rows of one parameter or buffer.
        """
        import torch

        if self.rounded is not None and reading in self._already:
            yield from self._rounded_blocks(self.rounded, reading)
        elif reading in self.quantized:
            layer, scheme = self.quantized[reading]
            for rows in self._rows(f"{reading}.weight"):
                made = quantized_layer(rows, layer.kind, scheme, scale_search=self.scale_search)
                yield {f"{reading}.{name}": tensor for name, tensor in named_tensors(made)}
        elif reading in self.outline.sources:
            for block in row_blocks(self.outline.sources[reading], BLOCK_BYTES):
                yield {reading: torch.from_numpy(block)}
        else:
            yield {reading: self.model.module.get_buffer(reading)}

    def _rounded_blocks(self, rounded: RoundedLayers, reading: str) -> Iterator[Tensors]:
        layer, scheme = self.quantized[reading]
        step = max(1, BLOCK_BYTES // (4 * layer.in_features))
        for start in range(0, layer.out_features, step):
            part = rounded.rows(layer.name, start, start + step)
            yield {f"{reading}.weight": rounded_weight(*part, scheme)}

    def _rows(self, path: str) -> Iterator[torch.Tensor]:
        import torch

        source = self.outline.sources[path]
        blocks = map(torch.from_numpy, row_blocks(source, BLOCK_BYTES))
        if self.scale_search != "hqq":
            yield from blocks
            return
        whole, done = torch.empty(source.shape), 0
        for block in blocks:
            whole[done : done + len(block)] = block
            done += len(block)
        yield whole  # the search stops when the scales of all rows stand

    @cached_property
    def _already(self) -> frozenset[str]:
        names = self.rounded.names if self.rounded is not None else ()
        return frozenset(self.model.paths[name] for name in names)

    @cached_property
    def _first(self) -> Mapping[str, str]:
        """The first unquantized parameter that each source fills, by the source's name."""
        first: dict[str, str] = {}
        for path, source in self.outline.sources.items():
            if self.reads_alone(path):
                first.setdefault(source.name, path)
        return first
