"""The foundation: quantized base weights and base encodings, the same bytes whatever the adapters.

One `foundation.bin` serves the prefill and the decode graph. It holds channel weights (4-bit ones two to a byte, low
half first), their scales, norm gains and biases, RoPE tables, the change of basis that adapters must follow, the base
encodings (calibrated without LoRA and then frozen) and the token ids of the calibration prompts, so that adapters can
be calibrated later without the base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.intake.parsing import UNREADABLE
from lora_core_qnn_sim.artifacts.container import Container, read_container, write_container
from lora_core_qnn_sim.artifacts.encoding_tensors import from_tensors, to_tensors
from lora_core_qnn_sim.encodings.grid import ChannelWeight, Encoding
from lora_core_qnn_sim.errors import DamagedContainerError
from lora_core_qnn_sim.graph.basis import Basis
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.widths import tensor_bits
from lora_core_qnn_sim.runtime.weights import BaseWeights

Array = npt.NDArray[Any]
KIND = "foundation"
_GAIN = "rotation.gain."
_SPLIT = "split.channels."


@attrs.frozen(kw_only=True, eq=False)
class FoundationBinary:
    """The base of a context. `spec` is the graph without slots; `digest` identifies the file's bytes.

    `basis` is what distinguishes it from the checkpoint and what adapters are brought to.
    """

    spec: GraphSpec
    base: BaseWeights
    encodings: Mapping[str, Encoding]
    prompts: tuple[npt.NDArray[np.int64], ...]
    basis: Basis = attrs.field(factory=Basis)
    digest: str = ""

    def with_slots(self, spec: GraphSpec) -> dict[str, Encoding]:
        """Return the base encodings of `spec`: a linear with a branch keeps its grid before and after the sum."""
        encodings = dict(self.encodings)
        for slot in spec.slots:
            encodings[f"{slot.layer}.base.output"] = encodings[f"{slot.layer}.output"]
        return encodings


def write_foundation(path: Path, foundation: FoundationBinary) -> str:
    """Write `foundation` and return its digest."""
    base = foundation.base
    tensors: dict[str, Array] = {"rope.cos": base.cos, "rope.sin": base.sin}
    tensors |= {name: vector.astype(np.float32) for name, vector in base.vectors.items()}
    for name, weight in base.linears.items():
        tensors[name] = pack_nibbles(weight.values) if weight.bits == 4 else weight.values
        tensors[f"{name}.scales"] = weight.scales
    basis = foundation.basis
    tensors |= {f"{_GAIN}{name}": gain for name, gain in (basis.gains or {}).items()}
    tensors |= {f"{_SPLIT}{name}": channels for name, channels in basis.splits.items()}
    tensors |= to_tensors(foundation.encodings)
    tensors["calibration.tokens"] = np.concatenate(foundation.prompts).astype(np.int32)
    tensors["calibration.lengths"] = np.array([len(prompt) for prompt in foundation.prompts], np.int32)
    detail = {
        "spec": foundation.spec.to_json(),
        "linears": {
            name: {"bits": weight.bits, "shape": list(weight.values.shape)} for name, weight in base.linears.items()
        },
        "vectors": sorted(base.vectors),
        "rotated": basis.gains is not None,
    }
    return write_container(path, KIND, detail, tensors)


def read_foundation(path: Path) -> FoundationBinary:
    """Open a foundation; int8 weights stay memory-mapped. Raises `DamagedContainerError`."""
    container = read_container(path, KIND)
    try:
        return _assemble(container)
    except UNREADABLE as error:
        raise DamagedContainerError(f"{path.name} is not a foundation this version wrote", where=str(path)) from error


def _assemble(container: Container) -> FoundationBinary:
    tensors, detail = container.tensors, container.detail
    spec = GraphSpec.from_json(detail["spec"])
    linears = {}
    for name, about in detail["linears"].items():
        values = tensors[name] if about["bits"] != 4 else unpack_nibbles(tensors[name], about["shape"])
        linears[name] = ChannelWeight(bits=about["bits"], values=values, scales=tensors[f"{name}.scales"])
    base = BaseWeights(
        linears=linears,
        vectors={name: tensors[name] for name in detail["vectors"]},
        cos=tensors["rope.cos"],
        sin=tensors["rope.sin"],
    )
    ends = np.cumsum(tensors["calibration.lengths"])[:-1]
    prompts = np.split(tensors["calibration.tokens"].astype(np.int64), ends)
    gains = {name.removeprefix(_GAIN): array for name, array in tensors.items() if name.startswith(_GAIN)}
    splits = {name.removeprefix(_SPLIT): array for name, array in tensors.items() if name.startswith(_SPLIT)}
    return FoundationBinary(
        spec=spec,
        base=base,
        encodings=from_tensors(tensors, tensor_bits(spec)),
        prompts=tuple(prompts),
        basis=Basis(gains=gains if detail["rotated"] else None, splits=splits),
        digest=container.digest,
    )


def pack_nibbles(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack signed 4-bit values of a matrix two to a byte, low half first; an odd count is padded with 0."""
    flat: npt.NDArray[np.uint8] = values.reshape(-1).view(np.uint8) & np.uint8(15)
    even: npt.NDArray[np.uint8] = np.zeros(flat.size + flat.size % 2, np.uint8)
    even[: flat.size] = flat
    packed: npt.NDArray[np.uint8] = np.bitwise_or(even[0::2], even[1::2] * np.uint8(16), dtype=np.uint8)
    return packed


def unpack_nibbles(packed: npt.NDArray[np.uint8], shape: Sequence[int]) -> npt.NDArray[np.int8]:
    """Undo `pack_nibbles`."""
    both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))]
    signed: npt.NDArray[np.int8] = ((both ^ 8).astype(np.int8) - np.int8(8)).astype(np.int8)
    return signed.reshape(tuple(shape))
