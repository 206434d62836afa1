"""The eager reference of callers' own modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_core.errors import UnsupportedError
from lora_core.models.module import ModuleModel
from lora_core.verification.eager_reference import EagerReference


class Summing(torch.nn.Module):
    """Logits that depend on all tokens so far."""

    def __init__(self, *, last_only: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(10, 6)
        self.head = torch.nn.Linear(6, 10)
        self.last_only = last_only

    def forward(self, tokens: torch.Tensor, position: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.head(self.embed(tokens).cumsum(1))
        return logits[:, -1] if self.last_only else logits


TOKENS = (3, 1, 4, 1, 5)


def reference(module: torch.nn.Module, *more: torch.Tensor) -> EagerReference:
    model = ModuleModel(module=module, example_args=(torch.tensor([[1, 2, 3]]), *more))
    return EagerReference(model, (), length=8)


def test_a_module_of_tokens_alone_is_a_reference() -> None:
    assert reference(Summing(last_only=False)).logits(None, TOKENS).shape == (5, 10)


def test_a_module_of_tokens_and_a_position_is_a_reference() -> None:
    assert reference(Summing(last_only=False), torch.tensor([0])).logits(None, TOKENS).shape == (5, 10)


def test_a_module_that_returns_the_last_logits_gives_the_same_as_one_that_returns_all() -> None:
    every = reference(Summing(last_only=False)).logits(None, TOKENS)
    last = reference(Summing(last_only=True)).logits(None, TOKENS)
    np.testing.assert_allclose(last, every, rtol=1e-6)


def test_a_module_of_something_else_is_none() -> None:
    model = ModuleModel(module=torch.nn.Linear(2, 2), example_args=(torch.zeros(1, 2),))
    with pytest.raises(UnsupportedError, match=r"takes neither \(tokens\) nor \(tokens, position\)"):
        EagerReference(model, (), length=8)
