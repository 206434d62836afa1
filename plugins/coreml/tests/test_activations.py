"""A residual stream beyond 256 squares to infinity in float16. Lowered plain norms fail on it, ours do not."""

import copy

import attrs
import numpy as np
import pytest
import torch
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.lowering import norms
from lora_core_coreml.session_options import CoremlSessionOptions

TOKENS = [5, 17, 3, 99]
GAIN = 2000.0


@pytest.fixture(scope="module")
def loud(exporter, tiny_model, tmp_path_factory):
    """The tiny model with an embedding so large that the residual stream is beyond 256: (its exporter, its logits)."""
    model = copy.deepcopy(tiny_model.reference)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    model.get_input_embeddings().weight.mul_(GAIN)
    # The head is tied; the last norm brings the logits back to where float16 is precise.
    model.model.norm.weight.div_(GAIN)
    directory = tmp_path_factory.mktemp("loud") / "tiny"
    model.save_pretrained(directory)
    with torch.no_grad():
        found = model(torch.tensor([TOKENS]), output_hidden_states=True)
    assert min(hidden[0].abs().amax(dim=-1).min() for hidden in found.hidden_states[:-1]) > 256
    return attrs.evolve(exporter, model=directory, cache=None, made={}), found.logits[0, -1].numpy()


def strict_logits(exporter) -> np.ndarray:
    with CoremlBackend().open(exporter.export_again([]), CoremlSessionOptions(precision="float16")) as session:
        return session.step(None, TOKENS, 0)


def test_a_large_residual_stream_stays_finite_in_strict_float16(loud) -> None:
    exporter, expected = loud
    # The residual stream holds values of a thousand with 11 bits, so its smaller parts keep few.
    assert np.abs(strict_logits(exporter) - expected).max() < 0.05 * expected.std()


def test_the_plain_norm_overflows_on_it(loud, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, expected = loud
    monkeypatch.setattr(norms, "replace_norms", lambda module: None)
    # The mean square is infinite and its inverse root 0: nothing is left of any row.
    assert not strict_logits(exporter).any()
    assert expected.std() > 0.1
