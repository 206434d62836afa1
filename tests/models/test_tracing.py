"""What torch.export cannot trace is the model's error, with torch's reason."""

from __future__ import annotations

import pytest
import torch

from lora_core.errors import ModelError
from lora_core.models.base import BaseModel, ModelOptions
from lora_core.models.module import ModuleModel
from lora_core.models.tracing import tracing


class Undecided(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.fixture
def base() -> BaseModel:
    """A module whose path depends on its input's values."""
    return ModuleModel(module=Undecided(), example_args=(torch.ones(2),), name="undecided").load(ModelOptions())


def test_an_untraceable_module_is_the_models_error(base: BaseModel) -> None:
    with (
        pytest.raises(ModelError, match=r"torch.export cannot trace model 'undecided': \w+: .+") as raised,
        tracing(base.summary),
    ):
        torch.export.export(base.module, base.example_args)
    assert raised.value.__cause__ is not None


def test_errors_of_ours_pass(base: BaseModel) -> None:
    with pytest.raises(ModelError, match="ours"), tracing(base.summary):
        raise ModelError("ours")


def test_a_defect_of_what_the_core_builds_passes(base: BaseModel) -> None:
    import attrs

    built = attrs.evolve(base, summary=attrs.evolve(base.summary, family="llama"))
    with pytest.raises(KeyError), tracing(built.summary):
        raise KeyError("ours to mend")
