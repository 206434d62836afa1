"""Powers, cosines and sines against mpmath, which computes with integers, and without help of a library's last bits."""

import mpmath
import numpy as np
import pytest

from lora_core import elementary

ANGLES = np.concatenate(
    [
        np.float32([0.0, 1e-30, 1.0, 355.0, 131071.0]),  # 355 is nearly a multiple of pi
        np.random.default_rng(0).integers(0, 1 << 24, 2000).astype(np.float32) / np.float32(1 << 7),
    ]
)


def exactly(function, values):
    with mpmath.workdps(50):
        return np.array([float(function(mpmath.mpf(float(value)))) for value in values]).astype(np.float32)


@pytest.mark.parametrize("name", ["cos", "sin"])
def test_cosines_and_sines_are_correctly_rounded(name):
    ours = {"cos": elementary.cosines, "sin": elementary.sines}[name](ANGLES)
    np.testing.assert_array_equal(ours, exactly(getattr(mpmath, name), ANGLES))


@pytest.mark.parametrize("name", ["cos", "sin"])
@pytest.mark.parametrize("error", [2.0**-36, -(2.0**-36)])
def test_an_error_within_the_margin_does_not_show(monkeypatch, name, error):
    # A margin and errors a thousand times wider than real ones, so that a few thousand angles meet some.
    angles = np.arange(1, 20001, dtype=np.float32) / np.float32(1 << 7)
    computed, exact = {"cos": elementary.cosines, "sin": elementary.sines}[name], getattr(np, name)
    right = computed(angles)
    monkeypatch.setattr(elementary, "_MARGIN", 2.0**-34)
    monkeypatch.setattr(np, name, lambda values: exact(values) * (1.0 + error))
    np.testing.assert_array_equal(computed(angles), right)
    plainly_rounded = getattr(np, name)(angles.astype(np.float64)).astype(np.float32)
    assert (plainly_rounded != right).any()


@pytest.mark.parametrize("base", [1e4, 5e5, 1e6])
def test_powers_are_correctly_rounded(base):
    exponents = np.arange(0, 128, 2, dtype=np.float32) / np.float32(128)
    ours = elementary.powers(base, exponents.tolist())
    np.testing.assert_array_equal(ours, exactly(lambda exponent: mpmath.power(base, exponent), exponents))


@pytest.mark.parametrize("count", [4, 12, 36])
def test_cosines_of_turns_go_once_around(count):
    ours = elementary.cosines_of_turns(count)
    np.testing.assert_allclose(ours, np.cos(2 * np.pi * np.arange(count) / count), atol=1e-15)
    assert ours[count // 2] == -1.0
