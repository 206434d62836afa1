"""Choosing the next token."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lora_core.errors import CheckFailedError, UsageError
from lora_core.runtime.sampling import Sampler, Sampling

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def picks(sampling, count=4000):
    sampler = Sampler(sampling)
    seen = Counter(sampler.pick(LOGITS) for _ in range(count))
    return [seen[token] / count for token in range(len(LOGITS))]


def test_greedy_takes_the_largest_and_the_first_of_equals():
    assert Sampler(Sampling()).pick(np.array([1, 3, 3, 2], np.float32)) == 1


def test_temperature_one_follows_the_probabilities():
    # 4000 draws: a standard error of at most 0.008, and the seed is fixed.
    assert picks(Sampling(temperature=1.0)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_low_temperature_prefers_the_likely():
    expected = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    assert picks(Sampling(temperature=0.5)) == pytest.approx(list(expected / expected.sum()), abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.51, 2), (0.9, 3), (0.96, 4)])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    shares = picks(Sampling(temperature=1.0, top_p=top_p))
    assert [share > 0 for share in shares] == [True] * kept + [False] * (4 - kept)


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3)])
def test_tokens_that_reach_top_p_exactly_are_enough(top_p, kept):
    # Four equal logits: exp(0) is 1 in every library, so each has a quarter to the last bit. That of 0.5 need not be.
    sampler = Sampler(Sampling(temperature=1.0, top_p=top_p))
    assert {sampler.pick(np.zeros(4, np.float32)) for _ in range(400)} == set(range(kept))


def test_large_logits_do_not_overflow():
    assert Sampler(Sampling(temperature=0.01)).pick(np.array([1e30, 2e30], np.float32)) == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(CheckFailedError, match="not finite"):
        Sampler(Sampling()).pick(np.array([0.0, wrong, 1.0], np.float32))


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        Sampling(**settings)
