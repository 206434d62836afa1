"""A caller's own module as a base model."""

import numpy as np
import pytest
import torch

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.errors import ModelError
from lora_core.models.base import ModelOptions
from lora_core.models.injection import inject
from lora_core.models.module import ModuleModel
from tests.numeric import apart, tolerance


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = torch.nn.Embedding(10, 6)
        self.mixer = torch.nn.ModuleDict({"up": torch.nn.Linear(6, 8), "norm": torch.nn.LayerNorm(8)})
        self.attention = torch.nn.MultiheadAttention(8, 2)
        self.head = torch.nn.Linear(8, 3, bias=False)

    def forward(self, tokens: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        x = self.mixer["norm"](self.mixer["up"](self.tokens(tokens)))
        x, _ = self.attention(x, x, x)
        return self.head(x) * scale


class TiedDecoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(10, 6)
        self.out = torch.nn.Linear(6, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(tokens))


def model(module: torch.nn.Module, **options) -> ModuleModel:
    return ModuleModel(module=module, example_args=(torch.tensor([[1, 2, 3]]),), **options)


def test_layers_are_the_linear_and_embedding_modules_by_path():
    summary = model(Classifier(), name="classifier").summary
    assert (summary.name, summary.family) == ("classifier", "module")
    # The attention's out_proj is read, never called: LoRA on it would have no effect.
    assert [(layer.name, layer.kind, layer.in_features, layer.out_features) for layer in summary.layers] == [
        ("tokens", "embedding", 10, 6),
        ("mixer.up", "linear", 6, 8),
        ("head", "linear", 8, 3),
    ]
    assert model(Classifier()).load(ModelOptions()).paths["mixer.up"] == "mixer.up"
    assert [layer.has_bias for layer in summary.layers] == [False, True, False]
    assert summary.module_names == (
        "tokens",
        "mixer",
        "mixer.up",
        "mixer.norm",
        "attention",
        "attention.out_proj",
        "head",
    )


def test_output_head_is_the_one_named():
    summary = model(Classifier(), output="head").summary
    assert [layer.name for layer in summary.layers if layer.is_output] == ["head"]


def test_linear_that_shares_the_weight_of_an_embedding_is_the_output_head():
    layer = model(TiedDecoder()).summary.layer("out")
    assert (layer.is_output, layer.tied_to) == (True, "embed")


def test_loaded_module_is_ready_to_export():
    module = Classifier()
    token_count = torch.export.Dim("tokens", min=2, max=16)
    base = model(
        module,
        example_kwargs={"scale": 2.0},
        dynamic_shapes={"tokens": {1: token_count}, "scale": None},
        metadata={"get_vocab_size": 10},
    ).load(ModelOptions())
    assert not base.module.training
    assert not any(parameter.requires_grad for parameter in base.module.parameters())
    assert base.metadata == {"get_vocab_size": 10}
    exported = torch.export.export(
        base.module, base.example_args, base.example_kwargs, dynamic_shapes=base.dynamic_shapes
    )
    longer = torch.tensor([[1, 2, 3, 4, 5]])
    # Two norms and sums of 6, 8, 8, 4, 5, 8 and 8 products, in an order that an export may change.
    steps = 2 * 8 + 6 + 8 + 8 + 4 + 5 + 8 + 8
    assert apart(exported.module()(longer, scale=2.0), module(longer, scale=2.0)) <= tolerance(steps)


def test_callers_module_stays_as_it_is_and_shares_its_weights():
    module = TiedDecoder()
    base = model(module).load(ModelOptions())
    slot = Slot(module="out", in_features=6, out_features=10, rank=1)
    values = {"out": {"a": np.ones((1, 6), np.float32), "b": np.ones((10, 1), np.float32)}}
    inject(base.module, SlotPlan(slots=(slot,)), base.paths, values)
    assert type(module.out) is torch.nn.Linear
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    pointers = {parameter.data_ptr() for name, parameter in base.module.named_parameters() if "lora" not in name}
    assert pointers == {module.embed.weight.data_ptr()}
    assert base.module.out.weight is base.module.embed.weight


def test_module_that_is_not_float32_is_refused():
    with pytest.raises(ModelError, match=r"embed.weight \(bfloat16\)\. Call \.float\(\) on it first\."):
        model(TiedDecoder().to(torch.bfloat16)).load(ModelOptions())


def test_lora_attaches_to_any_module():
    base = model(Classifier()).load(ModelOptions())
    before = base.module(*base.example_args)
    slot = Slot(module="mixer.up", in_features=6, out_features=8, rank=2)
    a, b = np.ones((2, 6), np.float32), np.arange(16, dtype=np.float32).reshape(8, 2)
    values = {"mixer.up": {"a": a, "b": b}}
    inject(base.module, SlotPlan(slots=(slot,)), base.paths, values)
    assert apart(base.module(*base.example_args), before) > 0.01


def test_lora_on_a_tied_output_head_leaves_the_embedding_alone():
    base = model(TiedDecoder()).load(ModelOptions())
    tokens = base.example_args[0]
    embedded, logits = base.module.embed(tokens), base.module(tokens)
    slot = Slot(module="out", in_features=6, out_features=10, rank=1)
    a, b = np.ones((1, 6), np.float32), np.ones((10, 1), np.float32)
    inject(base.module, SlotPlan(slots=(slot,)), base.paths, {"out": {"a": a, "b": b}})
    assert torch.equal(base.module.embed(tokens), embedded)
    # Sums of six products, and two of six numbers each.
    assert apart(base.module(tokens), logits + embedded.sum(-1, keepdim=True)) <= tolerance(3 * 6)


class Scaled(torch.nn.Embedding):
    def forward(self, tokens):
        return super().forward(tokens) * 3


class WithScaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = Scaled(10, 6), torch.nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def test_an_embedding_that_computes_more_than_a_table_is_no_layer():
    model = ModuleModel(module=WithScaled(), example_args=(torch.tensor([[1]]),))
    (head,) = model.summary.layers
    assert (head.name, head.is_output, head.tied_to) == ("head", True, None)
    assert model.tensors()["head.weight"].shape == (10, 6)
    assert model.notes == (
        "More than a table is computed by embed (Scaled), so no policy quantizes it and no adapter fits it.",
    )
