"""What a backend can declare; import-free so that descriptors can use it."""

from __future__ import annotations

from enum import Enum


class Capability(Enum):
    """What a backend declares it can do; each is proven by the conformance kit or raises `UnsupportedError`.

    `STRENGTH`: sessions take a linked adapter at any strength (`pirate@0.5`). `BLEND`: several at once, each at a
    strength (`pirate:0.7+json:0.3`). How they are written is `lora_core.runtime.selection`'s.
    """

    EXPORT = "export"
    LINK = "link"
    RUN = "run"
    EVALUATE = "evaluate"
    STRENGTH = "strength"
    BLEND = "blend"
