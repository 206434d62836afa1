"""A caller's module inside a wrapper: its layers are called as adapters call them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.errors import ModelError
from lora_core.models.base import ModelOptions
from lora_core.models.injection import inject
from lora_core.models.module import ModuleModel


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 6)
        self.up = torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.embed(tokens)))


class Wrapper(torch.nn.Module):
    """What every `return .logits` looks like from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Module()
        self.inner.model = Decoder()
        self.extra = torch.nn.Linear(2, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.inner.model(tokens)


def wrapped(**options: object) -> ModuleModel:
    return ModuleModel(module=Wrapper(), example_args=(torch.tensor([[1, 2, 3]]),), **options)


def test_a_prefix_is_left_out_of_names() -> None:
    summary = wrapped(prefix="inner.model").summary
    assert [layer.name for layer in summary.layers] == ["embed", "up", "head", "extra"]
    assert summary.layer("head").tied_to == "embed"
    assert {"embed", "up", "head"} <= {*summary.module_names}
    assert "" not in summary.module_names


def test_names_lead_to_the_layers_of_the_wrapper() -> None:
    base = wrapped(prefix="inner.model.").load(ModelOptions())
    assert base.paths["up"] == "inner.model.up"
    before = base.module(*base.example_args)
    slot = Slot(module="up", in_features=6, out_features=6, rank=1)
    values = {"up": {"a": np.ones((1, 6), np.float32), "b": np.ones((6, 1), np.float32)}}
    inject(base.module, SlotPlan(slots=(slot,)), base.paths, values)
    assert not torch.equal(base.module(*base.example_args), before)


def test_tensors_are_called_as_the_layers_are() -> None:
    assert set(wrapped(prefix="inner.model").tensors()) == {
        *("embed.weight", "up.weight", "up.bias"),
        *("extra.weight", "extra.bias"),
    }


def test_names_can_be_given_by_a_function() -> None:
    summary = wrapped(rename=lambda path: path.replace("inner.model", "model")).summary
    assert [layer.name for layer in summary.layers] == ["model.embed", "model.up", "model.head", "extra"]


def test_a_prefix_that_is_not_there_is_refused_with_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"no module 'outer'. Its own modules are: inner, extra\."):
        wrapped(prefix="outer")


def test_two_modules_of_one_name_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Several modules are called same\. Correct `rename`"):
        wrapped(rename=lambda path: "same" if path.endswith(("up", "extra")) else path)


def test_the_head_says_how_many_tokens_there_are() -> None:
    assert wrapped(prefix="inner.model").summary.vocab_size == 10
    assert wrapped(vocab_size=7).summary.vocab_size == 7


def test_length_and_ends_are_the_callers_word() -> None:
    summary = wrapped(context_len=12, eos_ids=(3,)).summary
    assert (summary.context_len, summary.eos_ids) == (12, (3,))
