"""A and B that make up for what rounding lost: the least squares, and how a decoder's layers are fitted one by one."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.peft.format import PeftFormat
from lora_core.errors import ModelError, UnsupportedError
from lora_core.events import Event, StageAdvanced, ignore
from lora_core.layers import LayerInfo
from lora_core.models.base import ModelHandle
from lora_core.models.hf import HfModelSource
from lora_core.preparation.decoder import CalibratedDecoder
from lora_core.preparation.fitted_updates import STAGE, FittedUpdates, condensed, fitted_updates, nearest
from lora_core.preparation.rounded import decoder_of
from lora_core.quant.fitting import Float32, Grid, dequantized, fitted
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint

GRID = Grid(lowest=-8, highest=7, group=32)
PROMPTS = [np.arange(3, 40, dtype=np.int64), np.arange(90, 60, -1, dtype=np.int64)]
OTHERS = [np.arange(100, 60, -1, dtype=np.int64)]


def round_weight(_layer: LayerInfo, weight: Float32) -> Float32:
    return dequantized(*fitted(weight, GRID))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return HfModelSource().open(str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=3)))


@pytest.fixture(scope="module")
def adapter(tiny: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    directory = write_tiny_adapter(
        tmp_path_factory.mktemp("adapter") / "a", seed=5, rank=4, targets=("q_proj", "down_proj")
    )
    return PeftFormat().read("a", directory, tiny.summary)


def linears(model: ModelHandle) -> dict[str, LayerInfo]:
    return {each.name: each for each in model.summary.layers if each.kind == "linear" and not each.is_output}


def fit(model: ModelHandle, adapter: Adapter, rank: int | None = None, emit=ignore) -> FittedUpdates:
    return fitted_updates(model, adapter, linears(model), round_weight, PROMPTS, rank=rank, emit=emit)


def products(updates) -> dict[str, np.ndarray]:
    return {each.module: each.scaling * each.tensors["b"].read() @ each.tensors["a"].read() for each in updates}


def hidden(model: ModelHandle, updates, prompts, *, rounded: bool) -> np.ndarray:
    own, layers = products(updates), linears(model)

    def visit(name: str, _inputs: np.ndarray, weight: np.ndarray) -> np.ndarray:
        stored = round_weight(layers[name], weight.astype(np.float32)) if rounded else weight
        return stored + own.get(name, 0.0)

    architecture, _ = decoder_of(model.summary)
    assert architecture is not None
    return CalibratedDecoder.over(architecture, model.tensors(), prompts, visit).run(prompts)


@pytest.mark.parametrize("tokens", [20, 200])
def test_no_other_matrix_of_the_rank_has_nearer_outputs(tokens: int):
    chance = np.random.default_rng(1)
    inputs, delta = chance.standard_normal((tokens, 48)), chance.standard_normal((40, 48))
    a, b, left = nearest(delta, inputs, 5)
    outputs = inputs @ delta.T
    best = np.square(np.linalg.svd(outputs, compute_uv=False)[5:]).sum()
    # A and B are float32: a relative rounding of 6e-8 of outputs whose squares sum to twenty times what is left.
    assert np.square(outputs - inputs @ (b.astype(float) @ a).T).sum() == pytest.approx(best, rel=1e-5)
    assert left == pytest.approx(best, rel=1e-9)


def test_condensed_inputs_have_the_same_nearest_outputs():
    chance = np.random.default_rng(3)
    inputs, delta = chance.standard_normal((200, 48)), chance.standard_normal((40, 48))
    few = condensed(inputs)
    assert few.shape == (48, 48)
    (a, b, left), (own_a, own_b, own_left) = nearest(delta, inputs, 5), nearest(delta, few, 5)
    assert np.allclose(b.astype(float) @ a, own_b.astype(float) @ own_a, atol=1e-6)  # float32, values below 10
    assert left == pytest.approx(own_left, rel=1e-9)
    assert np.array_equal(condensed(inputs[:20]), inputs[:20])


def test_a_rank_that_the_outputs_do_not_have_is_left_out():
    delta = np.outer(np.arange(1.0, 9.0), np.ones(6))
    a, b, left = nearest(delta, np.random.default_rng(2).standard_normal((30, 6)), 4)
    assert (a.shape, b.shape) == ((1, 6), (8, 1))
    assert np.allclose(b @ a, delta, rtol=1e-6)  # float32
    assert left < 1e-9


def test_the_outputs_of_the_rounded_decoder_come_nearer_on_texts_it_was_not_fitted_on(
    tiny: ModelHandle, adapter: Adapter
):
    full = hidden(tiny, adapter.updates, OTHERS, rounded=False)

    def error(updates) -> float:
        return float(np.square(hidden(tiny, updates, OTHERS, rounded=True) - full).mean())

    own, more = error(fit(tiny, adapter).updates), error(fit(tiny, adapter, rank=24).updates)
    assert own < error(adapter.updates)
    assert more < own


def test_what_is_told_of_the_errors_is_what_they_are(tiny: ModelHandle, adapter: Adapter):
    told = fit(tiny, adapter)
    assert 0 < told.after < told.before < 0.1  # 4 bits lose about 1 % of a normal weight's square
    assert fit(tiny, adapter, rank=24).after < told.after


def test_ranks_and_modules_stay_what_they_were(tiny: ModelHandle, adapter: Adapter):
    updates = fit(tiny, adapter).updates
    assert [each.module for each in updates] == [each.module for each in adapter.updates]
    assert all(
        each.tensors[part].shape == before.tensors[part].shape
        for each, before in zip(updates, adapter.updates, strict=True)
        for part in ("a", "b")
    )


def test_a_slot_on_a_layer_that_is_not_rounded_is_kept(tiny: ModelHandle, adapter: Adapter):
    rounded = {name: layer for name, layer in linears(tiny).items() if "q_proj" in name}
    updates = fitted_updates(tiny, adapter, rounded, round_weight, PROMPTS, rank=None, emit=ignore).updates
    kept = [each for each in adapter.updates if "down_proj" in each.module]
    assert [each for each in updates if "down_proj" in each.module] == kept
    assert not any(each in adapter.updates for each in updates if "q_proj" in each.module)


def test_nothing_to_fit_is_an_error(tiny: ModelHandle, adapter: Adapter):
    with pytest.raises(UnsupportedError, match="on no layer that is stored rounded"):
        fitted_updates(tiny, adapter, {}, round_weight, PROMPTS, rank=None, emit=ignore)


def test_a_base_that_cannot_be_run_is_refused_with_a_remedy_of_its_own(
    tiny: ModelHandle, adapter: Adapter, tmp_path: Path
):
    @attrs.frozen
    class Stranger:
        summary = attrs.evolve(tiny.summary, family="mamba")

    with pytest.raises(ModelError, match=r"family 'mamba' cannot be calibrated.* link them as they are"):
        fit(Stranger(), adapter)  # type: ignore[arg-type]


def test_progress_is_told_for_every_slot(tiny: ModelHandle, adapter: Adapter):
    told: list[Event] = []
    fit(tiny, adapter, emit=told.append)
    advanced = [(each.done, each.total) for each in told if isinstance(each, StageAdvanced) and each.stage == STAGE]
    assert advanced == [(1, 4), (2, 4), (3, 4), (4, 4)]
