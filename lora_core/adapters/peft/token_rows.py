"""Trained tokens as updates: what they add to the base's rows, of the embedding and of a head with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.adapter import Update
from lora_core.adapters.slots.embedding_kinds import places
from lora_core.adapters.slots.recovery import HeldTensor
from lora_core.adapters.views import ComputedTensor, TurnedTensor
from lora_core.layers import LayerInfo
from lora_core.tensors import LazyTensor, Sliceable

if TYPE_CHECKING:
    import numpy.typing as npt


@attrs.frozen(kw_only=True)
class AddedRows(ComputedTensor):
    """What trained rows (`stored`) add to the rows `ids` of the base's `weight`."""

    weight: LazyTensor
    ids: tuple[int, ...]

    def read(self) -> npt.NDArray[np.float32]:
        """Return the differences, one float32 subtraction for each number; other rows of the base are not read."""
        weight = self.weight
        if isinstance(weight, Sliceable):
            rows = np.concatenate([weight.read_rows(row, row + 1) for row in self.ids])
        else:
            rows = weight.read()[list(self.ids)]
        added: npt.NDArray[np.float32] = self.stored.read() - rows
        return added


def tokens_update(layer: LayerInfo, ids: Sequence[int], trained: LazyTensor, weight: LazyTensor) -> Update:
    """Return the update of `layer` whose rows `ids` are `trained`, where the base's are those of `weight`.

    PEFT puts trained rows in the place of the base's (peft/tuners/trainable_tokens/layer.py, `get_merged_weights`).
    """
    added = AddedRows(stored=trained, weight=weight, ids=tuple(ids))
    if layer.kind == "embedding":
        numbers = np.array(ids, dtype=np.float32)[:, None]
        tensors: dict[str, LazyTensor] = {"ids": _held("ids", numbers, trained), "vectors": TurnedTensor(stored=added)}
        return Update(module=layer.name, kind="tokens", tensors=tensors, scaling=1.0)
    marked = _held("places", places(ids, layer.out_features), trained)
    return Update(module=layer.name, kind="token_logits", tensors={"vectors": added, "places": marked}, scaling=1.0)


def _held(name: str, values: npt.NDArray[np.float32], like: LazyTensor) -> HeldTensor:
    return HeldTensor(name=f"{like.name} {name}", values=values, dtype="F32", path=like.path)
