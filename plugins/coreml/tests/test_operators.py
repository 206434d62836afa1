"""References of our own, against torch; and the norm that replaces RMSNorm, against its definition."""

import numpy as np
import pytest
import torch
from lora_core_coreml.lowering.norms import ScaledRMSNorm, replace_norms
from lora_core_coreml.runtime.evaluation import operators

from tests.numeric import FLOAT16, apart, tolerance

pytestmark = pytest.mark.processors
# An operation on each number by itself is rounded a few times, and exp and rsqrt are each within one or two units in
# the last place (2**-23): eight such units, relative to every value.
EACH = 8 * 2.0**-23


def values(*shape: int, dtype: type = np.float32, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_every_reference_says_why_it_exists() -> None:
    assert set(operators.REASONS) == set(operators.REFERENCES)


def test_silu_is_that_of_torch() -> None:
    x = values(3, 50) * 10
    expected = torch.nn.functional.silu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(operators.silu({"x": x}), expected, rtol=EACH, atol=EACH * 2.0**-10)
    assert np.isfinite(operators.silu({"x": np.array([-1000.0, 1000.0], np.float32)})).all()


@pytest.mark.parametrize(("name", "function"), [("reduce_mean", torch.mean), ("reduce_max", torch.amax)])
@pytest.mark.parametrize("keep", [True, False])
def test_reductions_are_those_of_torch(name: str, function, keep: bool) -> None:
    x = values(2, 3, 40)
    found = operators.REFERENCES[name]({"x": x, "axes": np.array([-1], np.int32), "keep_dims": np.bool_(keep)})
    expected = function(torch.from_numpy(x), -1, keepdim=keep).numpy()
    assert apart(found, expected) <= tolerance(40)


def test_rsqrt_is_that_of_torch() -> None:
    x = np.abs(values(4, 9)) + 0.1
    expected = torch.rsqrt(torch.from_numpy(x) + 1e-5).numpy()
    np.testing.assert_allclose(operators.rsqrt({"x": x, "epsilon": np.float32(1e-5)}), expected, rtol=EACH)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_linear_is_that_of_torch(dtype: type) -> None:
    given = (values(2, 5, 64, dtype=dtype), values(48, 64, dtype=dtype, seed=8), values(48, dtype=dtype, seed=9))
    # In float32, whatever the type: how torch adds up float16 is its own affair and differs between processors.
    expected = torch.nn.functional.linear(*(torch.from_numpy(each).float() for each in given)).numpy()
    found = operators.linear(dict(zip(("x", "weight", "bias"), given, strict=True)))
    assert found.dtype == dtype
    # Ours is rounded to float16 twice: the sum, and with the bias.
    assert apart(found, expected) <= (tolerance(2, unit=FLOAT16) if dtype == np.float16 else tolerance(64 + 1))


@pytest.mark.parametrize(("left", "right"), [(False, False), (True, False), (False, True)])
def test_matmul_is_that_of_torch(left: bool, right: bool) -> None:
    x, y = values(2, 1, 6, 8), values(2, 3, 8, 5, seed=8)
    given = {
        "x": np.swapaxes(x, -1, -2) if left else x,
        "y": np.swapaxes(y, -1, -2) if right else y,
        "transpose_x": np.bool_(left),
        "transpose_y": np.bool_(right),
    }
    expected = (torch.from_numpy(x) @ torch.from_numpy(y)).numpy()
    assert apart(operators.matmul(given), expected) <= tolerance(8)


@pytest.mark.parametrize(("word", "dtype"), [("int32", np.int32), ("bool", np.bool_), ("fp32", np.float32)])
def test_casts_are_those_of_torch(word: str, dtype: type) -> None:
    x = np.array([-1.7, 0.0, 2.6], np.float32)
    expected = torch.from_numpy(x).to(getattr(torch, np.dtype(dtype).name)).numpy()
    found = operators.cast({"x": x, "dtype": word})
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0, 20000.0])
def test_the_scaled_norm_is_rms_norm_at_every_magnitude_in_float16(scale: float) -> None:
    x = torch.from_numpy(np.clip(values(4, 96) * scale, -60000, 60000).astype(np.float16))
    weight = torch.from_numpy(values(96, seed=8))
    reference = torch.nn.RMSNorm(96, eps=1e-5)
    reference.weight.data = weight
    with torch.no_grad():
        expected = reference(x.float())
        found = ScaledRMSNorm(weight, 1e-5).half()(x)
    assert torch.isfinite(found).all()
    # A dozen roundings of float16 (2**-11 each), relative to the largest output.
    assert (found.float() - expected).abs().max() < 4e-3 * expected.abs().max()


def test_the_plain_norm_overflows_where_the_scaled_one_does_not() -> None:
    x = torch.full((1, 8), 300.0, dtype=torch.float16)
    plain = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)
    assert not (plain > 0.5).all()
    # Within a rounding of float16 below 1, and one above.
    assert (ScaledRMSNorm(None, 1e-5).half()(x) - 1).abs().max() <= 2.0**-10


def test_a_zero_row_stays_zero() -> None:
    zero = torch.zeros(1, 16, dtype=torch.float16)
    assert torch.equal(ScaledRMSNorm(None, 1e-5).half()(zero), zero)


def test_every_kind_of_norm_is_replaced_with_the_same_function() -> None:
    from executorch.examples.models.llama.norm import RMSNorm, ScalelessRMSNorm

    norms = torch.nn.ModuleDict(
        {
            "plain": RMSNorm(32),
            "offset": RMSNorm(32, add_unit_offset=True),
            "scaleless": ScalelessRMSNorm(32),
            "torch": torch.nn.RMSNorm(32),
        }
    )
    for seed, parameter in enumerate(norms.parameters()):
        parameter.data = torch.from_numpy(values(*parameter.shape, seed=seed))
    x = torch.from_numpy(values(5, 32, seed=20))
    with torch.no_grad():
        expected = {name: norm(x) for name, norm in norms.items()}
        replace_norms(norms)
        for name, norm in norms.items():
            assert isinstance(norm, ScaledRMSNorm)
            # The mean of 32 squares, and some six operations on each number.
            assert apart(norm(x), expected[name]) <= tolerance(32 + 6), name
