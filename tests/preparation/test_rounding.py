"""Rounding for the inputs that layers have, and the decoder that it is calibrated with."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

from lora_core.errors import ModelError
from lora_core.events import ignore
from lora_core.models.base import ModelHandle
from lora_core.models.hf import HfModelSource
from lora_core.preparation.compensation import compensated, inverse_factor
from lora_core.preparation.decoder import CalibratedDecoder
from lora_core.preparation.rounded import DAMPING, RoundedLayers, decoder_of, round_layers, round_weight
from lora_core.quant.fitting import Grid, dequantized, fitted, fitted_by_importance
from lora_core.testing.tiny import write_tiny_checkpoint
from lora_core.verification.eager_reference import EagerReference
from tests.numeric import apart, decoder_tolerance

GRID = Grid(lowest=-8, highest=7, group=32)
PROMPTS = [np.arange(3, 40, dtype=np.int64), np.arange(90, 60, -1, dtype=np.int64)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return HfModelSource().open(str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=3)))


def linears(model: ModelHandle) -> list[str]:
    return [layer.name for layer in model.summary.layers if layer.kind == "linear" and not layer.is_output]


def correlated(inputs: int) -> np.ndarray:
    """Return inputs (tokens, inputs) that predict each other, as those of a decoder do."""
    chance = np.random.default_rng(5)
    return chance.standard_normal((400, 8)) @ chance.standard_normal((8, inputs)) + 0.1 * chance.standard_normal(
        (400, inputs)
    )


def test_the_decoder_computes_what_the_reference_does(tiny: ModelHandle):
    architecture, problems = decoder_of(tiny.summary)
    assert architecture is not None, problems
    tensors = tiny.tensors()
    hidden = CalibratedDecoder.over(architecture, tensors, PROMPTS, lambda _name, _inputs, weight: weight).run(PROMPTS)
    logits = hidden @ tensors["model.embed_tokens.weight"].read().astype(np.float64).T
    reference = EagerReference(tiny, [], length=len(PROMPTS[0]))
    expected = np.concatenate([np.array(reference.logits(None, prompt.tolist())) for prompt in PROMPTS])
    steps = decoder_tolerance(layers=2, hidden=64, inner=96, context=len(PROMPTS[0]))
    assert apart(logits, expected) < steps


def test_rounding_with_compensation_errs_less_on_its_inputs_than_the_nearest_integers():
    x, weight = correlated(96), np.random.default_rng(6).standard_normal((64, 96))
    moment = x.T @ x
    integers, scales = round_weight(weight, inverse_factor(moment), np.diag(moment), GRID)
    plain, plain_scales = fitted(weight.astype(np.float32), GRID)

    def error(found: np.ndarray, scale: np.ndarray) -> float:
        real = (found.reshape(64, 3, 32) * scale[..., None].astype(np.float64)).reshape(weight.shape)
        return float(np.square(x @ (real - weight).T).sum())

    assert error(integers, scales) < 0.5 * error(plain, plain_scales)


def test_scales_by_importance_err_least_where_inputs_are_large():
    weight = np.random.default_rng(9).standard_normal((16, 64)).astype(np.float32)
    importance = np.random.default_rng(10).uniform(0.1, 1.0, 64) ** 8

    def error(found: tuple[np.ndarray, np.ndarray]) -> float:
        return float((np.square(dequantized(*found) - weight) @ importance).sum())

    integers, scales = fitted_by_importance(weight, importance, GRID)
    assert error((integers, scales)) < 0.7 * error(fitted(weight, GRID))
    # The nearest integers at these scales, and each row and group for itself.
    assert np.array_equal(integers, GRID.integers(weight.reshape(16, 2, 32), scales).reshape(16, 64))
    alone = fitted_by_importance(weight[3:5, 32:], importance[32:], GRID)
    assert np.array_equal(alone[0], integers[3:5, 32:])
    assert np.array_equal(alone[1], scales[3:5, 1:])


def test_inputs_that_tell_nothing_of_each_other_get_the_nearest_integers():
    weight = np.random.default_rng(7).standard_normal((16, 96))
    integers, scales = round_weight(weight, inverse_factor(np.eye(96)), np.ones(96), GRID)
    nearest = GRID.integers(weight.astype(np.float32).reshape(16, 3, 32), scales)
    assert np.array_equal(integers, nearest.reshape(weight.shape))


def test_columns_are_compensated_across_blocks():
    x, weight = correlated(320), np.random.default_rng(8).standard_normal((4, 320))
    factor = inverse_factor(x.T @ x)
    found, _ = compensated(weight, factor, lambda _start, _columns: np.full(4, 0.5), group=320, lowest=-8, highest=7)
    columns = weight.T.copy()
    for j in range(320):  # the method as it is defined, a column at a time
        rounded = np.clip(np.rint(columns[j] / 0.5), -8, 7)
        columns[j:] -= factor[j, j:, None] * ((columns[j] - rounded * 0.5) / factor[j, j])
        assert np.array_equal(found[:, j], rounded)


@pytest.mark.parametrize("compensate", [True, False])
def test_every_layer_is_rounded_for_inputs_that_follow_from_rounded_layers(
    tiny: ModelHandle, tmp_path: Path, compensate: bool
):
    grids = dict.fromkeys(linears(tiny), GRID)
    kept = round_layers(tiny, grids, PROMPTS, tmp_path, ignore, compensate=compensate)
    seen: dict[str, np.ndarray] = {}

    def go_on(name: str, inputs: np.ndarray, weight: np.ndarray) -> np.ndarray:
        seen[name] = inputs
        integers, scales = kept.rows(name, 0)
        return (integers.reshape(*scales.shape, -1) * scales[..., None].astype(np.float64)).reshape(weight.shape)

    architecture, _ = decoder_of(tiny.summary)
    assert architecture is not None
    CalibratedDecoder.over(architecture, tiny.tensors(), PROMPTS, go_on).run(PROMPTS)
    last = linears(tiny)[-1]
    weight = tiny.tensors()[f"{last}.weight"].read()
    moment = seen[last].T @ seen[last]
    importance = np.square(seen[last]).sum(axis=0)
    again = (
        round_weight(weight.astype(np.float64), inverse_factor(moment, DAMPING), np.diag(moment), GRID)
        if compensate
        else fitted_by_importance(weight, importance, GRID)
    )
    assert all(np.array_equal(*pair) for pair in zip(again, kept.rows(last, 0), strict=True))


def test_rows_of_a_rounded_layer_are_read_alone(tmp_path: Path):
    kept = RoundedLayers(directory=tmp_path, names=("one", "two"))
    integers, scales = np.arange(64, dtype=np.int8).reshape(8, 8), np.arange(8, dtype=np.float32).reshape(8, 1)
    kept.put("two", integers, scales)
    found = kept.rows("two", 3, 5)
    assert np.array_equal(found[0], integers[3:5])
    assert np.array_equal(found[1], scales[3:5])


def test_a_base_of_another_family_is_refused_by_name(tiny: ModelHandle, tmp_path: Path):
    @attrs.frozen
    class Stranger:
        summary = attrs.evolve(tiny.summary, family="mamba")

    with pytest.raises(ModelError, match="family 'mamba' cannot be calibrated"):
        round_layers(Stranger(), {}, PROMPTS, tmp_path, ignore)  # type: ignore[arg-type]
