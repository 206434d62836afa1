"""What stands in a stamped program for the keys of stored data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from lora_core_xnnpack.adapter_dtype import StoredParts
from lora_core_xnnpack.cache.origins import BaseTensor
from lora_core_xnnpack.slot_tensors import tensor_blob
from lora_core_xnnpack.stamping.keys import BaseKey, SlotKey, StoredKey, stand_in
from lora_core_xnnpack.stamping.shallow import LayeredBase


@attrs.frozen(kw_only=True)
class SlotTexts:
    """The keys of placeholders, as a full lowering would have them; for base tensors texts that no other has."""

    slots: Mapping[SlotKey, str]

    @classmethod
    def of(cls, base: LayeredBase, placeholders: Sequence[Mapping[str, StoredParts]]) -> SlotTexts:
        """Return the texts for the placeholders of each plan, by module and part."""
        paths = base.base.model.paths
        return cls(
            slots={
                SlotKey(plan=number, path=paths[module], part=part): tensor_blob(array, part).key
                for number, values in enumerate(placeholders)
                for module, parts in values.items()
                for part, array in parts.items()
            }
        )

    def __call__(self, key: StoredKey) -> str:
        """Return the text of a key."""
        return self.slots[key] if isinstance(key, SlotKey) else stand_in(key)

    def blob(self, tensor: BaseTensor) -> str:
        """Return the text of the key of a blob of the foundation."""
        return tensor.name or self(BaseKey(form=tensor.form, prefix=tensor.prefix))
