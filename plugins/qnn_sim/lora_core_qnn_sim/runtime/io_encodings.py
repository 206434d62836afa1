"""The encodings of a graph's inputs and outputs, as a client must read them after every section."""

from __future__ import annotations

import attrs

from lora_core_qnn_sim.encodings.grid import Encoding


@attrs.frozen(kw_only=True)
class IoEncodings:
    """I/O encodings at one moment; `generation` counts the sections applied, so that old ones are told apart.

    `logits` is the output's, `alpha` the alpha vector's, `keys` and `values` those of the KV cache, one per layer.
    """

    generation: int
    logits: Encoding
    alpha: Encoding
    keys: tuple[Encoding, ...]
    values: tuple[Encoding, ...]
