"""Binary sections: what an adapter changes in a context.

A section is a container of kind `section`. Its `detail` says which adapter (`name`), `part` (`combined`, `weights` or
`encodings`), graph, foundation digest, interface of the context, and the id of the encodings that its weights are
quantized under (for an encodings-only section: that it brings). Its tensors are folded over layers. The file's name is
`<graph>_<adapter>.bin`, `<graph>_<adapter>_weights.bin` or `<graph>_<adapter>_encodings.bin` and is part of what is
checked. The vendor does not publish how its tools name these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.intake.parsing import UNREADABLE
from lora_core_qnn_sim.artifacts.container import Container, read_container, write_container
from lora_core_qnn_sim.artifacts.context_binary import GRAPH, ContextBinary
from lora_core_qnn_sim.artifacts.encoding_tensors import SUFFIX, to_tensors
from lora_core_qnn_sim.artifacts.folding import fold, unfold
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.errors import DamagedContainerError, RenamedSectionError

KIND = "section"
DEFAULT_ADAPTER = "default_adapter"
SectionPart = Literal["combined", "weights", "encodings"]
Array = npt.NDArray[Any]


@attrs.frozen(kw_only=True, eq=False)
class Section:
    """A section as read: weights by tensor name, encodings as raw (scale, offset) pairs by tensor name.

    `size` is the file's, `payload` the bytes of its tensors.
    """

    name: str
    part: SectionPart
    graph: str
    foundation: str
    interface: str
    encodings_id: str
    weights: Mapping[str, Array]
    encodings: Mapping[str, Array]
    size: int
    payload: int
    path: Path


def section_file(name: str, part: SectionPart) -> str:
    """Return the file name of a section."""
    return f"{GRAPH}_{name}.bin" if part == "combined" else f"{GRAPH}_{name}_{part}.bin"


def write_section(
    directory: Path,
    context: ContextBinary,
    name: str,
    part: SectionPart,
    *,
    encodings_id: str,
    weights: Mapping[str, Array],
    encodings: Mapping[str, Encoding],
) -> Path:
    """Write one section of `part` into `directory` and return its path; what `part` leaves out is not written."""
    tensors: dict[str, Array] = {}
    if part != "encodings":
        tensors |= fold(weights)
    if part != "weights":
        tensors |= to_tensors(encodings)
    detail = {
        "name": name,
        "part": part,
        "graph": GRAPH,
        "foundation": context.foundation,
        "interface": context.interface,
        "encodings": encodings_id,
    }
    path = directory / section_file(name, part)
    write_container(path, KIND, detail, tensors)
    return path


def read_section(path: Path) -> Section:
    """Open a section; raises `DamagedContainerError`, `ContainerVersionError` or `RenamedSectionError`."""
    container = read_container(path, KIND)
    try:
        section = _assemble(container)
    except UNREADABLE as error:
        raise DamagedContainerError(f"{path.name} is not a section this version wrote", where=str(path)) from error
    expected = section_file(section.name, section.part)
    if path.name != expected:
        raise RenamedSectionError(
            f"{path.name} was written as {expected}", where=str(path), remedy="Give it back its name."
        )
    return section


def _assemble(container: Container) -> Section:
    detail = container.detail
    single = unfold(container.tensors)
    encodings = {n.removesuffix(SUFFIX): a for n, a in single.items() if n.endswith(SUFFIX)}
    if any(pair.shape != (2,) or pair.dtype != np.dtype("<f4") for pair in encodings.values()):
        raise ValueError("an encoding is not a (scale, offset) pair")
    return Section(
        name=detail["name"],
        part=detail["part"],
        graph=detail["graph"],
        foundation=detail["foundation"],
        interface=detail["interface"],
        encodings_id=detail["encodings"],
        weights={n: a for n, a in single.items() if not n.endswith(SUFFIX)},
        encodings=encodings,
        size=container.size,
        payload=container.payload,
        path=container.path,
    )
