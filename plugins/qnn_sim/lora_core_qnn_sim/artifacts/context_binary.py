"""The context binary: the compiled graph with its updatable tensors, without adapters.

It names the foundation it was compiled on by digest. Its initial state is zero LoRA weights on initial encodings, both
of which follow from the graph; in mode `none` it holds the encodings that all adapters share. A hot-switch context also
holds the weights of its one concurrency, rank-concatenated in the order of `adapters`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.intake.parsing import UNREADABLE
from lora_core_qnn_sim.artifacts.container import Container, canonical_json, read_container, write_container
from lora_core_qnn_sim.artifacts.encoding_tensors import from_tensors, to_tensors
from lora_core_qnn_sim.artifacts.folding import fold, unfold
from lora_core_qnn_sim.artifacts.initial import initial_branch
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.errors import DamagedContainerError
from lora_core_qnn_sim.graph.nodes import lora_weights, topology_hash
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.widths import tensor_bits
from lora_core_qnn_sim.options import Mode

KIND = "context"
GRAPH = "llm"
Array = npt.NDArray[Any]


@attrs.frozen(kw_only=True, eq=False)
class ContextBinary:
    """A context binary's content. `adapters` names the members of a hot-switch concurrency, else it is empty.

    `branch` are the initial encodings of the LoRA branches, `lora` the initial LoRA weights.
    """

    spec: GraphSpec
    mode: Mode
    foundation: str
    branch: Mapping[str, Encoding]
    lora: Mapping[str, Array]
    adapters: tuple[str, ...] = ()
    digest: str = ""

    @property
    def hot_switch(self) -> bool:
        """True if the adapters are chosen by the alpha vector and no sections exist."""
        return bool(self.adapters)

    @property
    def interface(self) -> str:
        """What a section must have been made for: topology, shapes, types, mode."""
        data = canonical_json({"topology": topology_hash(self.spec), "mode": self.mode, "graph": GRAPH})
        return hashlib.sha256(data.encode()).hexdigest()


def lora_dtype(spec: GraphSpec) -> np.dtype[Any]:
    """Return the type LoRA weights are stored in."""
    return np.dtype("i1") if spec.lora_bits <= 8 else np.dtype("<i2")


def zero_lora(spec: GraphSpec) -> dict[str, Array]:
    """Return zero LoRA weights."""
    return {name: np.zeros(shape, lora_dtype(spec)) for name, shape in lora_weights(spec).items()}


def write_context(path: Path, context: ContextBinary) -> str:
    """Write a context binary and return its digest."""
    # What follows from the graph is not stored: only encodings that adapters share.
    initial = initial_branch(context.spec)
    tensors = to_tensors({name: grid for name, grid in context.branch.items() if grid != initial[name]})
    if context.hot_switch:
        tensors |= fold(context.lora)
    detail = {
        "spec": context.spec.to_json(),
        "mode": context.mode,
        "graph": GRAPH,
        "graphs": {"prefill": context.spec.input_len, "decode": 1},
        "foundation": context.foundation,
        "adapters": list(context.adapters),
        "updatable": list(lora_weights(context.spec)),
        "topology": topology_hash(context.spec),
    }
    return write_container(path, KIND, detail, tensors)


def read_context(path: Path) -> ContextBinary:
    """Open a context binary; raises `DamagedContainerError` or `ContainerVersionError`."""
    container = read_container(path, KIND)
    try:
        return _assemble(container)
    except UNREADABLE as error:
        raise DamagedContainerError(f"{path.name} is not a context this version wrote", where=str(path)) from error


def _assemble(container: Container) -> ContextBinary:
    detail = container.detail
    spec = GraphSpec.from_json(detail["spec"])
    lora: Mapping[str, Array] = zero_lora(spec)
    if detail["adapters"]:
        lora = {n: a for n, a in unfold(container.tensors).items() if n in lora}
    return ContextBinary(
        spec=spec,
        mode=detail["mode"],
        foundation=detail["foundation"],
        branch=initial_branch(spec) | from_tensors(container.tensors, tensor_bits(spec)),
        lora=lora,
        adapters=tuple(detail["adapters"]),
        digest=container.digest,
    )
