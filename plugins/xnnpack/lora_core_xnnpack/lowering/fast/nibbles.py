"""Two four-bit values a byte, put together whole arrays at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_core_xnnpack.lowering.fast.patching import Patches


def packed(values: Any) -> Any:
    """Return a torch tensor of bytes, each of two of the int8 `values` from -8 to 7, plus 8, the first in the low half.

    `values` are a contiguous tensor of any shape with an even number of them; the bytes are in one row.
    """
    import torch

    pairs = (values.detach().to(torch.uint8) + 8).contiguous().view(-1).numpy().view("<u2")
    return torch.from_numpy((pairs >> np.uint16(4) | pairs).astype(np.uint8))


def pack_at_once(patches: Patches) -> None:
    """Pack weights of four bits as pairs, not every second of all values for itself.

    ExecuTorch 1.5.1 (`NodeVisitor.convert_to_qc4w` of `node_visitor.py`) steps through them twice. Drop when it does
    not.
    """
    import torch
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor

    convert = NodeVisitor.convert_to_qc4w

    def convert_at_once(inp: Any) -> Any:
        plain = inp.dtype == torch.int8 and inp.dim() == 2 and inp.numel() and inp.shape[1] % 2 == 0
        if not plain or inp.min() < -8 or inp.max() > 7:
            return convert(inp)
        return packed(inp).view(inp.shape[0], -1)

    patches.replace(NodeVisitor, "convert_to_qc4w", staticmethod(convert_at_once))
