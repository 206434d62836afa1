"""The lean decoder computes what ExecuTorch's does, and leaves nearly nothing to portable kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from executorch.examples.models.llama.attention import AttentionMHA
from executorch.examples.models.llama.llama_transformer import Transformer, construct_transformer
from executorch.examples.models.llama.model_args import ModelArgs
from executorch.examples.models.llama.source_transformation.custom_kv_cache import (
    replace_kv_cache_with_custom_kv_cache,
)
from executorch.examples.models.llama.source_transformation.sdpa import replace_sdpa_with_custom_op
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import ExecutionPlan
from lora_core_xnnpack.lowering.base import load_base
from lora_core_xnnpack.lowering.lean import LeanDecoder, LeanNorm, lean
from lora_core_xnnpack.lowering.lowering import lower
from workbench import ALL_LINEAR, Workbench

from lora_core.backend import Artifacts, ExportJob
from lora_core.events import ignore
from lora_core.models.base import BaseModel, ModelOptions
from lora_core.models.executorch.key_value_caches import replace_caches
from tests.numeric import apart, decoder_tolerance

SHAPE: Mapping[str, Any] = {"dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 3, "n_kv_heads": 1, "vocab_size": 64}
OPTIONS: Mapping[str, Any] = {
    "use_kv_cache": True,
    "use_sdpa_with_kv_cache_op": True,
    "enable_dynamic_shape": True,
    "use_hf_rope": True,
}
# Both sum the same numbers in orders of their own; the mean's division is a product with a rounded 1 / dim.
TOLERANCE = decoder_tolerance(layers=2, hidden=48, inner=80, context=16)
PREFILL, STEPS = (5, 60, 3, 9, 33, 2, 17), (8, 41)
# Delegates: one before the first attention, one for what follows the choice of the last token.
OUTSIDE = 2
KERNELS = [
    *("aten::sym_size", "quantized_decomposed::embedding_byte", "aten::_local_scalar_dense", "executorch_prim::add"),
    *("aten::slice_copy", "llama::update_cache", "llama::custom_sdpa", "aten::select_copy"),
]
FAMILIES = {
    "llama": {},
    "qwen2": {"attention_qkv_bias": True},
    "qwen3": {"use_qk_norm": True, "qk_norm_before_rope": True, "head_dim": 32},
    "unit-offset": {"rms_norm_add_unit_offset": True},
}


def transformer(**fields: Any) -> torch.nn.Module:
    """Return ExecuTorch's Llama with random weights, norms and biases too."""
    args = ModelArgs(**{**SHAPE, **OPTIONS, **fields}, max_seq_len=16, max_context_len=32)
    model = construct_transformer(args)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = 0.2 if parameter.dim() > 1 else 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    model = replace_kv_cache_with_custom_kv_cache(replace_sdpa_with_custom_op(model))
    return model.requires_grad_(False).eval()


def logits(model: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Return the logits after a prompt and after each of two more tokens."""
    found = [model(torch.tensor([PREFILL]), {"input_pos": torch.tensor([0])})]
    for place, token in enumerate(STEPS, len(PREFILL)):
        found.append(model(torch.tensor([[token]]), {"input_pos": torch.tensor([place])}))
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lean_decoder_computes_what_the_decoder_does(family: str) -> None:
    model = transformer(**FAMILIES[family])
    made = lean(copy.deepcopy(model))
    assert type(made) is LeanDecoder
    assert apart(logits(made), logits(model)) < TOLERANCE


# Keys and values are rounded once, and averaged. A step of int8 is up to 1 / 255 of a head's range, some six spreads.
@pytest.mark.parametrize(("kind", "limit"), [("fp16", 2.0**-8), ("int8", 0.1)])
def test_a_cache_of_fewer_bytes_changes_little_and_something(kind: str, limit: float) -> None:
    model = transformer()
    expected = logits(copy.deepcopy(model))
    replace_caches(model, kind)
    made = lean(model)
    assert type(made) is LeanDecoder
    assert 2.0**-16 < apart(logits(made), expected) < limit


@pytest.mark.parametrize(
    "fields", [{"use_q_gate": True}, {"use_hf_rope": False}, {"partial_rotary_factor": 0.5}], ids=str
)
def test_attention_that_is_not_understood_stays(fields: dict[str, Any]) -> None:
    model = transformer(**fields)
    expected = logits(copy.deepcopy(model))
    made = lean(model)
    assert type(made) is Transformer
    assert all(type(layer.attention) is AttentionMHA for layer in made.layers)
    assert all(type(layer.ffn_norm) is LeanNorm for layer in made.layers)
    assert apart(logits(made), expected) < TOLERANCE


def test_parameters_stay_what_they_were_under_their_names() -> None:
    model = transformer(**FAMILIES["qwen3"])
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert {name: tensor.data_ptr() for name, tensor in lean(model).state_dict().items()} == before


def test_constants_are_stored_once_for_the_whole_model() -> None:
    model = transformer(**FAMILIES["qwen3"])
    known = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    buffers = lean(model).named_buffers(remove_duplicate=False)
    added = {tensor.data_ptr(): tuple(tensor.shape) for _, tensor in buffers if tensor.data_ptr() not in known}
    # Means over the hidden size and over a head's, one epsilon, one half-turn.
    assert sorted(added.values()) == [(1,), (1, 32), (1, 48), (32, 32)]


@pytest.mark.parametrize(
    ("tokens", "options"), [(2, {"input_pos"}), (1, {"input_pos", "mask"})], ids=["two sequences", "a mask"]
)
def test_a_decoder_that_is_called_otherwise_is_lowered_as_it_is(
    one_layer: Workbench, monkeypatch: pytest.MonkeyPatch, tokens: int, options: set[str]
) -> None:
    handle, load = one_layer.handle, type(one_layer.handle).load
    given = (torch.ones(tokens, 3, dtype=torch.int64), dict.fromkeys(options, torch.tensor([0])))

    def otherwise(self: Any, asked: ModelOptions) -> BaseModel:
        return attrs.evolve(load(self, asked), example_args=given)

    monkeypatch.setattr(type(handle), "load", otherwise)
    assert type(load_base(one_layer.job([]), ignore).module) is Transformer


def test_no_policy_quantizes_a_constant(one_layer: Workbench) -> None:
    base = load_base(one_layer.job([], policy="8da4w", embedding="8,0"), ignore)
    constants = [(name, buffer) for name, buffer in base.module.named_buffers() if name.endswith(("shares", "epsilon"))]
    assert constants
    assert all(type(buffer) is torch.Tensor and buffer.dtype is torch.float32 for _, buffer in constants)


def computing(program: bytes) -> ExecutionPlan:
    plans = deserialize_pte_binary(program).program.execution_plan
    return next(plan for plan in plans if plan.name == "forward")


def names(plan: ExecutionPlan) -> list[str]:
    return [operator.name for operator in plan.operators]


def test_a_layer_is_one_delegate_and_three_kernel_calls(
    one_layer: Workbench, exported: Callable[[ExportJob], tuple[Path, Artifacts]], lowered_once: Path
) -> None:
    adapter = one_layer.adapter("lean", seed=8, targets=ALL_LINEAR)
    out, _ = exported(one_layer.job([adapter], policy="8da4w", embedding="8,0", cache=lowered_once))
    for path in (out / "base.pte", out / "lean.pte"):
        plan = computing(path.read_bytes())
        assert len(plan.delegates) == one_layer.layers + OUTSIDE
        assert names(plan) == KERNELS


def test_a_lowered_decoder_with_normalized_heads_computes_what_it_does_in_torch(
    one_layer: Workbench, tmp_path: Path
) -> None:
    from executorch.extension.pybindings.portable_lib import _load_for_executorch

    model = transformer(**FAMILIES["qwen3"])
    expected = logits(copy.deepcopy(model))
    base = load_base(one_layer.job([]), ignore)
    base.module = lean(model)
    lowered = lower({"forward": base.module}, base)
    lowered.manager.write_tensor_data_to_file(str(tmp_path))
    (tmp_path / "base.pte").write_bytes(lowered.pte)
    assert len(computing(lowered.pte).delegates) == SHAPE["n_layers"] + OUTSIDE
    program = _load_for_executorch(str(tmp_path / "base.pte"), str(tmp_path / "foundation.ptd"))
    found = logits(lambda tokens, options: program.forward((tokens, options["input_pos"]))[0].clone())
    assert apart(found, expected) < TOLERANCE
