"""Scales by least squares."""

from __future__ import annotations

import numpy as np
import pytest

from lora_core.quant.fitting import Float32, Grid, bfloat16, fitted, fitted_scales, weighted_scales

FOUR_BITS = Grid(lowest=-8, highest=7, group=32)


def weights(rows: int = 64) -> Float32:
    return np.random.default_rng(0).standard_normal((rows, 96), np.float32)


def squared_error(weight: Float32, integers: np.ndarray, scales: Float32) -> float:
    groups = weight.reshape(*scales.shape, -1).astype(np.float64)
    return float(np.square(groups - integers.reshape(groups.shape) * scales[..., None].astype(np.float64)).sum())


def test_scales_leave_less_of_an_error_than_those_of_the_range():
    weight = weights()
    by_range = (np.abs(weight.reshape(64, 3, 32)).max(axis=2) / np.float32(7.5)).astype(np.float32)
    plain = FOUR_BITS.integers(weight.reshape(64, 3, 32), by_range)
    assert squared_error(weight, *fitted(weight, FOUR_BITS)) < 0.98 * squared_error(weight, plain, by_range)


def test_weights_on_the_grid_are_found_again():
    integers = np.random.default_rng(1).integers(-8, 8, (5, 64)).astype(np.int8)
    integers[:, ::32] = -8  # every group reaches its end, so that its scale can be told
    found, scales = fitted(integers * np.float32(0.25), FOUR_BITS)
    assert np.array_equal(found, integers)
    assert np.array_equal(scales, np.full((5, 2), 0.25, np.float32))


def test_some_rows_give_the_same_as_those_rows_of_the_whole():
    whole, part = fitted(weights(), FOUR_BITS), fitted(weights()[10:13], FOUR_BITS)
    assert np.array_equal(whole[0][10:13], part[0])
    assert np.array_equal(whole[1][10:13], part[1])


@pytest.mark.parametrize("group", [32, 48, 7])
def test_scales_do_not_follow_how_rows_are_laid_out(group: int):
    weight = np.random.default_rng(2).standard_normal((40, group), np.float32)
    grid = Grid(lowest=-8, highest=7, group=group)
    strided = np.asfortranarray(np.repeat(weight, 3, axis=0))[::3]
    assert all(np.array_equal(*pair) for pair in zip(fitted(weight, grid), fitted(strided, grid), strict=True))


def test_a_group_of_zeros_has_integers_of_zero():
    integers, scales = fitted(np.zeros((2, 32), np.float32), FOUR_BITS)
    assert not integers.any()
    assert (scales > 0).all()


def test_a_large_weight_is_cut_off_unless_its_input_matters():
    group = np.full((1, 32), 0.1, np.float32)
    group[0, 7] = 1.0
    matters, does_not = np.full(32, 1e-3), np.ones(32)
    matters[7], does_not[7] = 1.0, 1e-3
    assert weighted_scales(group, matters, FOUR_BITS)[0] == pytest.approx(1.0 / 7, rel=0.05)  # kept: 7 steps
    assert weighted_scales(group, does_not, FOUR_BITS)[0] == pytest.approx(0.1)  # 0.1 is a step, 1 is cut off at 0.7


def test_scales_that_count_inputs_leave_less_of_their_error():
    groups, importance = weights().reshape(-1, 32), np.exp(2 * np.random.default_rng(3).standard_normal(32))

    def error(scales: Float32) -> float:
        return float((np.square(FOUR_BITS.integers(groups, scales) * scales[:, None] - groups) @ importance).sum())

    assert error(weighted_scales(groups, importance, FOUR_BITS)) < 0.97 * error(fitted_scales(groups, FOUR_BITS))


def test_scales_are_narrowed_before_integers_are_chosen():
    grid = Grid(lowest=-8, highest=7, group=32, narrow=bfloat16)
    integers, scales = fitted(weights(), grid)
    assert np.array_equal(scales, bfloat16(scales))
    nearest = np.clip(np.rint(weights().reshape(64, 3, 32) / scales[..., None]), -8, 7)
    assert np.array_equal(integers.reshape(64, 3, 32), nearest)


def test_bfloat16_rounds_half_to_even():
    halves = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    assert bfloat16(halves).tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]
