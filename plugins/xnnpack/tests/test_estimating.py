"""What an export is said to take before it begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lora_core_xnnpack.estimating import estimate
from workbench import POLICY_REGISTRY

from lora_core.layers import LayerInfo, ModelSummary

WIDTH = 1024


def job(blocks: int, *, family: str = "llama", policy: str = "fp32") -> Any:
    layers = [LayerInfo(name="model.embed_tokens", kind="embedding", in_features=4096, out_features=WIDTH)]
    for block in range(blocks):
        name = f"model.layers.{block}.mlp.up_proj"
        layers.append(LayerInfo(name=name, kind="linear", in_features=WIDTH, out_features=WIDTH))
    summary = ModelSummary(name="some", family=family, layers=tuple(layers), module_names=())
    model = SimpleNamespace(summary=summary)
    return SimpleNamespace(model=model, policy=POLICY_REGISTRY[policy], plans=(), adapters=())


def test_memory_does_not_grow_with_the_depth_of_a_base_whose_layers_are_alike() -> None:
    for policy in ("fp32", "8da4w"):
        deep, deeper = (estimate(job(blocks, policy=policy)) for blocks in (32, 128))
        assert deep.memory == deeper.memory
        assert deep.written < deeper.written


def test_of_a_base_that_is_derived_from_few_blocks_only_quantized_weights_are_held() -> None:
    float32, quantized = (estimate(job(32, policy=policy)).memory for policy in ("fp32", "8da4w"))
    embedding, blocks = 4096 * WIDTH, 4 * WIDTH * WIDTH
    assert embedding + 2 * blocks < quantized - float32 < embedding + 3 * blocks
    assert float32 < estimate(job(1)).memory  # lowered with all that it stores


def test_memory_counts_a_float_weight_as_it_is_held_and_as_it_is_stored() -> None:
    one, two = (estimate(job(blocks)).memory for blocks in (1, 2))
    assert two - one == 2 * 4 * WIDTH * WIDTH


def test_a_base_in_float16_is_written_and_held_in_half_of_the_bytes() -> None:
    for policy, size in (("fp32", 4), ("fp16", 2)):
        one, two = (estimate(job(blocks, policy=policy)) for blocks in (1, 2))
        assert two.written - one.written > size * WIDTH * WIDTH
        assert two.written - one.written < size * WIDTH * WIDTH + 10_000  # the program's tables
        assert two.memory - one.memory == 2 * size * WIDTH * WIDTH


def test_memory_of_a_callers_module_is_not_known() -> None:
    assert estimate(job(2, family="module")).memory is None
