"""Say what quantizing and dequantizing give without computing them, where only shapes and types are asked for."""

from __future__ import annotations

from typing import Any

from lora_core_xnnpack.lowering.fast.patching import Patches


def know_shapes(patches: Patches) -> None:
    """Give fake results of torchao's affine operators as empty tensors of the same shape and type.

    torchao 0.18 (`quantization/quant_primitives.py`) has no kernels of shapes for them, so that torch computes each of
    a quantized layer's in some ten operators on fake tensors, again in every pass that runs a graph. While operators
    are recorded in a graph, they are computed. Drop when torchao registers such kernels.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.proxy_tensor import get_proxy_mode
    from torchao.quantization import quant_primitives

    quantize, dequantize = (
        quant_primitives._quantize_affine_no_dtype_cast,
        quant_primitives._dequantize_affine_no_dtype_check,
    )

    def only_shape_is_asked(tensor: Any) -> bool:
        return type(tensor) is FakeTensor and get_proxy_mode() is None

    def quantized(value: Any, block_size: Any, scale: Any, zero_point: Any, *limits: Any) -> Any:
        if only_shape_is_asked(value):
            return torch.empty_like(value, memory_format=torch.contiguous_format)
        return quantize(value, block_size, scale, zero_point, *limits)

    def dequantized(value: Any, block_size: Any, scale: Any, zero_point: Any, low: Any, high: Any, dtype: Any) -> Any:
        if only_shape_is_asked(value):
            return torch.empty_like(value, dtype=dtype, memory_format=torch.contiguous_format)
        return dequantize(value, block_size, scale, zero_point, low, high, dtype)

    patches.replace(quant_primitives, "_quantize_affine_no_dtype_cast", quantized)
    patches.replace(quant_primitives, "_dequantize_affine_no_dtype_check", dequantized)
