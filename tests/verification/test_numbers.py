"""The numbers that verify judges by, on logits whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lora_core.models.reference_model import Trace
from lora_core.verification.numbers import compare, effect


def trace(logits, tokens=None) -> Trace:
    logits = np.array(logits, np.float32)
    tokens = tuple(int(row.argmax()) for row in logits) if tokens is None else tokens
    return Trace(prompt=(1,), tokens=tokens, logits=logits)


def test_equal_logits_have_no_error():
    reference = [trace([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])]
    numbers = compare(reference, [reference[0].logits], tie=0.0)
    assert (numbers.max_error, numbers.mean_error, numbers.kl, numbers.max_kl) == (0, 0, 0, 0)
    assert (numbers.top1, numbers.greedy, numbers.positions) == (1, 1, 2)


def test_kl_is_that_of_the_distributions():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    numbers = compare([trace([np.log(p)])], [np.log(q)[None]], tie=0.0)
    assert numbers.kl == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5), rel=1e-6)


def test_a_constant_added_to_all_logits_changes_neither_kl_nor_choices():
    reference = [trace([[1.0, 2.0, 4.0]])]
    numbers = compare(reference, [reference[0].logits + 100], tie=0.0)
    assert numbers.kl == pytest.approx(0, abs=1e-9)
    assert numbers.top1 == 1
    assert numbers.max_error == 100


def test_greedy_agreement_ends_at_the_first_other_token():
    reference = trace([[0, 9], [9, 0], [0, 9], [9, 0]])
    exported = reference.logits.copy()
    exported[1] = exported[1][::-1]
    numbers = compare([reference], [exported], tie=0.0)
    assert numbers.top1 == 0.75
    assert numbers.greedy == 0.25


def test_a_tie_within_the_limit_counts_as_agreement():
    reference = trace([[1.0, 1.001, -5.0]])
    exported = np.array([[1.001, 1.0, -5.0]], np.float32)
    assert compare([reference], [exported], tie=0.0).top1 == 0
    assert compare([reference], [exported], tie=0.01).top1 == 1


def test_effect_tells_the_scale_and_the_direction():
    chance = np.random.default_rng(0)
    base, change = chance.standard_normal((2, 3, 50))
    before, after = [trace(row[None]) for row in base], [trace(row[None]) for row in base + change]

    def measured(exported_change):
        rows = base + exported_change
        return effect((before, after), ([row[None] for row in base], [row[None] for row in rows]))

    assert measured(change).ratio == pytest.approx(1, rel=1e-5)
    assert measured(change).direction == pytest.approx(1, rel=1e-5)
    assert measured(2 * change).ratio == pytest.approx(2, rel=1e-5)
    assert measured(2 * change).direction == pytest.approx(1, rel=1e-5)
    assert measured(change[::-1]).direction < 0.5
    assert measured(change + 7).ratio == pytest.approx(1, rel=1e-5)
    assert measured(0 * change).ratio == 0
    assert math.isnan(measured(0 * change).direction)


def test_infinite_logits_are_beyond_every_limit():
    from lora_core.limits import INT4
    from lora_core.verification.judging import logits

    reference = [trace([[1.0, 2.0, 3.0]])]
    with np.errstate(invalid="ignore"):
        numbers = compare(reference, [np.full((1, 3), np.inf, np.float32)], tie=0.0)
    assert "KL nan" in logits("forward", numbers, INT4).detail


@pytest.mark.parametrize(
    ("policy", "moved", "failed"),
    [("FLOAT32", 0.5, True), ("FLOAT32", 1e-3, False), ("INT4", 0.1, False), ("INT4", 0.9, True)],
)
def test_an_effect_that_the_reference_does_not_have_is_found(policy, moved, failed):
    from lora_core import limits
    from lora_core.verification.judging import takes_effect
    from lora_core.verification.numbers import Effect

    measured = Effect(ratio=1000.0, direction=0.1, size=1e-5, exported_size=moved)
    finding = takes_effect("a", changed=True, adapter=None, measured=measured, limits=getattr(limits, policy))
    assert finding.failed == failed


@pytest.mark.parametrize(
    ("policy", "noise", "direction", "outcome"),
    [
        ("INT4", 0.1, 0.457, "failed"),  # a base this exact leaves an effect of 0.5 its direction
        ("INT4", 0.4, 0.457, "passed"),  # this one does not
        ("INT4", 0.4, 0.1, "failed"),
        ("INT4", 4.0, 0.1, "unchecked"),
        ("FLOAT32", 4e-5, 0.999, "failed"),
    ],
)
def test_the_direction_is_held_against_the_error_of_the_base(policy, noise, direction, outcome):
    from lora_core import limits
    from lora_core.verification.judging import takes_effect
    from lora_core.verification.numbers import Effect

    measured = Effect(ratio=1.0, direction=direction, size=0.5, exported_size=1.0, noise=noise)
    finding = takes_effect("a", changed=True, adapter=None, measured=measured, limits=getattr(limits, policy))
    assert finding.outcome.value == outcome


@pytest.mark.parametrize(
    ("noise", "ratio", "outcome"),
    [
        (0.01, 1.6, "failed"),  # a base this exact leaves an effect of 0.1 its size
        (0.05, 1.6, "passed"),  # this one adds its own error to it
        (0.05, 2.5, "failed"),
        (0.05, 0.4, "failed"),  # an error makes no effect smaller
        (0.5, 1.6, "unchecked"),
    ],
)
def test_the_size_is_held_against_the_error_of_the_base(noise, ratio, outcome):
    from lora_core import limits
    from lora_core.verification.judging import takes_effect
    from lora_core.verification.numbers import Effect

    measured = Effect(ratio=ratio, direction=0.9, size=0.1, exported_size=ratio / 10, noise=noise)
    finding = takes_effect("a", changed=True, adapter=None, measured=measured, limits=limits.INT4)
    assert finding.outcome.value == outcome


def test_the_noise_is_the_error_of_the_exported_base():
    chance = np.random.default_rng(2)
    base, change, error = chance.standard_normal((3, 3, 50))
    before, after = [trace(row[None]) for row in base], [trace(row[None]) for row in base + change]
    rows = base + error
    measured = effect((before, after), ([row[None] for row in rows], [row[None] for row in rows + change]))
    centered = error - error.mean(axis=1, keepdims=True)
    expected = np.sqrt((centered**2).mean()) / np.float64(base.astype(np.float32).std(axis=1).mean())
    assert measured.noise == pytest.approx(expected, rel=1e-5)  # float32 logits
    assert measured.direction_with(0) == 1


def test_the_size_of_an_exported_effect_is_told():
    chance = np.random.default_rng(1)
    base, change = chance.standard_normal((2, 3, 50))
    before = [trace(row[None]) for row in base]
    measured = effect((before, before), ([row[None] for row in base], [row[None] for row in base + change]))
    assert measured.size == 0
    centered = change - change.mean(axis=1, keepdims=True)
    expected = np.sqrt((centered**2).mean()) / np.float64(base.astype(np.float32).std(axis=1).mean())
    assert measured.exported_size == pytest.approx(expected, rel=1e-5)


def test_what_a_fitted_adapter_takes_back_of_its_base_is_part_of_no_effect():
    base, change, error = np.random.default_rng(3).standard_normal((3, 3, 50))
    before, after = [trace(row[None]) for row in base], [trace(row[None]) for row in base + change]
    exported = ([row[None] for row in base + error], [row[None] for row in base + change])
    assert effect((before, after), exported, fitted=True).direction == pytest.approx(1, rel=1e-5)
    assert effect((before, after), exported).direction < 0.9
    assert effect((before, after), exported, fitted=True).noise == effect((before, after), exported).noise
