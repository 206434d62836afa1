"""Decoders as they are lowered, before they are: against transformers and peft reading the same files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from lora_core_transformers.model import TransformersModel
from lora_core_transformers.source import TransformersSource

from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.choice import place_alone
from lora_core.errors import ModelError
from lora_core.models.base import ModelOptions
from lora_core.models.injection import inject
from tests.numeric import apart, decoder_tolerance

CONTEXT = 32
OPTIONS = ModelOptions(max_context_len=CONTEXT, max_seq_len=CONTEXT)
TOKENS = torch.tensor([[72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 108, 100, 46, 33, 63, 10, 65, 66]])
LIMIT = decoder_tolerance(layers=2, hidden=32, inner=128, context=CONTEXT, rank=3)


@pytest.fixture(scope="module", params=tiny_models.EXPORTED)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_decoder(tmp_path_factory.mktemp(request.param) / "model", request.param)


def opened(base: Path) -> TransformersModel:
    return TransformersSource().open(str(base))


def fed(module: torch.nn.Module, parts: Iterator[slice]) -> list[torch.Tensor]:
    """Return the last logits after each part of the tokens."""
    with torch.no_grad():
        return [module(TOKENS[:, part], torch.tensor([part.start])).reshape(-1) for part in parts]


def prompt_and_steps() -> Iterator[slice]:
    yield slice(0, 7)
    yield from (slice(index, index + 1) for index in range(7, TOKENS.shape[1]))


def expected(model: torch.nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        logits = model(input_ids=TOKENS, use_cache=False).logits[0]
    return list(logits[6:])


def test_prompt_and_steps_give_the_logits_of_transformers(base: Path) -> None:
    theirs = expected(transformers.AutoModelForCausalLM.from_pretrained(base).eval())
    assert apart(torch.stack(fed(opened(base).load(OPTIONS).module, prompt_and_steps())), torch.stack(theirs)) < LIMIT


def test_adapters_on_all_linear_layers_give_the_logits_of_peft(base: Path, tmp_path: Path) -> None:
    import peft

    directory = tiny_models.write_adapter(tmp_path / "adapter", base, seed=1)
    reference = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), directory)
    model = opened(base)
    (placed,) = place_alone([PeftFormat().read("one", directory, model.summary)], model.summary.layers)
    loaded = model.load(OPTIONS)
    inject(loaded.module, placed.plan, loaded.paths, placed.values_by_module())
    ours = torch.stack(fed(loaded.module, prompt_and_steps()))
    assert apart(ours, torch.stack(expected(reference.eval()))) < LIMIT


def test_the_structure_says_what_the_loaded_model_is(base: Path) -> None:
    model = opened(base)
    summary, tensors = model.summary, model.tensors()
    assert summary.module_names == model._loaded.summary.module_names
    assert summary.layers == model._loaded.summary.layers
    shapes = {
        f"{layer.name}.weight": (layer.out_features, layer.in_features)
        for layer in summary.layers
        if layer.kind == "linear" and layer.tied_to is None
    }
    assert {name: tensors[name].shape for name in shapes} == shapes


def test_what_is_done_to_one_loaded_base_is_not_done_to_another(tmp_path: Path) -> None:
    model = opened(tiny_models.write_decoder(tmp_path / "model", "gpt2"))
    first = model.load(OPTIONS).module
    before = [each.clone() for each in fed(first, prompt_and_steps())]
    second = model.load(OPTIONS)
    with torch.no_grad():
        for layer in second.summary.layers:
            path = second.paths[layer.name]
            second.module.get_submodule(path).weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    assert all(np.array_equal(one, other) for one, other in zip(before, fed(first, prompt_and_steps()), strict=True))


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("gpt_neo", "computes other numbers with transformers' static cache than without"),
        ("falcon", "transformers cannot make 'falcon' exportable: .*slice shapes"),
        ("mamba", "transformers cannot make 'mamba' exportable"),
    ],
)
def test_a_definition_that_its_static_cache_does_not_fit_is_refused(tmp_path: Path, model_type: str, said: str) -> None:
    model = opened(tiny_models.write_decoder(tmp_path / "model", model_type))
    with pytest.raises(ModelError, match=said):
        model.load(OPTIONS)
