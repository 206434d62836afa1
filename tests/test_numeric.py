"""The tolerance of numeric tests: wide enough for another order of addition, too narrow for another number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.numeric import FLOAT16, apart, tolerance


def products(length: int, seed: int = 0) -> np.ndarray:
    """A thousand times the products of a sum of `length`, in float32."""
    random = np.random.default_rng(seed)
    left, right = random.standard_normal((2, 1000, length)).astype(np.float32)
    return left * right


@pytest.mark.parametrize("length", [8, 64, 512, 4096])
def test_the_worst_order_of_addition_is_within_the_tolerance(length):
    terms = products(length)
    one_by_one, backwards = (np.cumsum(each, axis=1, dtype=np.float32)[:, -1] for each in (terms, terms[:, ::-1]))
    assert 0 < apart(one_by_one, backwards) <= tolerance(length)


@pytest.mark.parametrize("length", [8, 64, 512])
def test_sums_kept_in_half_precision_are_beyond_it(length):
    terms = products(length)
    exact = terms.sum(axis=1, dtype=np.float64)
    half = np.cumsum(terms.astype(np.float16), axis=1, dtype=np.float16)[:, -1]
    assert tolerance(length) < apart(half, exact) <= tolerance(length, unit=FLOAT16)


def test_a_sum_without_its_smallest_terms_is_beyond_it():
    terms = products(512)
    without = np.where(np.abs(terms) < 1e-3, 0, terms)
    assert apart(without.sum(axis=1), terms.sum(axis=1)) > tolerance(512)


def test_nothing_is_near_a_number_that_is_none_or_an_output_of_zeros():
    assert apart([1.0, math.nan], [1.0, 2.0]) == math.inf
    assert apart([1.0, 1e-30], [0.0, 0.0]) == math.inf
    assert apart([0.0, 0.0], [0.0, 0.0]) == 0


def test_equal_outputs_have_their_size_for_a_spread():
    assert apart([9.0, 9.0], [10.0, 10.0]) == pytest.approx(0.45)
