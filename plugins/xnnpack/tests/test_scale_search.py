"""The half-quadratic scale search: torchao's, but for the order of its sums."""

import numpy as np
import pytest
import torch
from lora_core_xnnpack.scale_search import search
from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_scale_only_hqq as torchaos

SHAPES = [(-8, 7, 32), (-8, 7, 256), (-128, 127, 256)]


def weights() -> torch.Tensor:
    # 22 bits each: their sums are not exact in float32. Rows differ in size, and one is zero.
    integers = np.random.default_rng(0).integers(1 - (1 << 20), 1 << 20, (4, 96, 256)).sum(axis=0)
    made = torch.from_numpy(integers.astype(np.float32)) * torch.exp2(-torch.arange(96.0)[:, None])
    made[7] = 0
    return made


@pytest.mark.parametrize(("qmin", "qmax", "size"), SHAPES)
def test_scales_are_those_of_torchao_to_the_last_places(qmin: int, qmax: int, size: int) -> None:
    ours, theirs = search(weights(), (1, size), qmin, qmax), torchaos(weights(), [1, size], qmin, qmax)
    assert ours[0].dtype == theirs[0].dtype
    # A float32 sum of 256 products of one sign is off by at most 256 / 2 units in the last place (2^-24 of the sum).
    torch.testing.assert_close(ours[1], theirs[1], rtol=2 * 256 * 2.0**-24, atol=0)


@pytest.mark.parametrize(("qmin", "qmax", "size"), SHAPES)
def test_scales_do_not_depend_on_the_order_within_a_group(qmin: int, qmax: int, size: int) -> None:
    order = torch.from_numpy(np.random.default_rng(1).permutation(size))

    def shuffled(values: torch.Tensor) -> torch.Tensor:
        return values.view(96, -1, size)[:, :, order].reshape(values.shape)

    integers, scales = search(weights(), (1, size), qmin, qmax)
    others = search(shuffled(weights()), (1, size), qmin, qmax)
    assert torch.equal(scales, others[1])
    assert torch.equal(shuffled(integers), others[0])
