"""Linear layers whose weights alone are small are delegated with what is around them, and compute what torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from lora_core_xnnpack.lowering.lowering import lower
from lora_core_xnnpack.quant import put_layer, quantized_layer
from lora_core_xnnpack.runtime.library import load_runtime
from workbench import POLICY_REGISTRY

from lora_core.errors import ModelError
from lora_core.layers import ModelSummary
from lora_core.models.base import BaseModel
from tests.numeric import FLOAT16, FLOAT32, apart, tolerance

WIDTH, INNER = 64, 96
SUMMARY = ModelSummary(name="mlp", family="module", layers=(), module_names=())


def small_weights(policy: str) -> torch.nn.Module:
    """Return a residual MLP with biases, its weights as `policy` has them."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(WIDTH, INNER), torch.nn.Sigmoid(), torch.nn.Linear(INNER, WIDTH))
    scheme = POLICY_REGISTRY[policy].linear
    assert scheme is not None
    for path in ("0", "2"):
        old = module.get_submodule(path)
        made = quantized_layer(old.weight.detach(), "linear", scheme, scale_search="fitted")
        made.bias = old.bias
        put_layer(module, path, made)
    return module.requires_grad_(False).eval()


# What is rounded in float16 are the inputs and outputs of two layers; int8 weights are widened and summed in float32.
@pytest.mark.parametrize(("policy", "unit"), [("fp16", FLOAT16), ("c8w", FLOAT32)])
def test_weights_alone_are_one_delegate_that_computes_what_torch_does(tmp_path: Path, policy: str, unit: float) -> None:
    module, inputs = small_weights(policy), torch.randn(1, 5, WIDTH)
    base = BaseModel(
        summary=SUMMARY,
        module=module,
        paths={},
        example_args=(inputs,),
        example_kwargs={},
        dynamic_shapes=None,
        metadata={},
    )
    lowered = lower({"forward": module}, base)
    lowered.manager.write_tensor_data_to_file(str(tmp_path))
    (tmp_path / "mlp.pte").write_bytes(lowered.pte)
    (plan,) = deserialize_pte_binary(lowered.pte).program.execution_plan
    assert (len(plan.delegates), plan.operators) == (1, [])
    program = load_runtime()._load_for_executorch(str(tmp_path / "mlp.pte"), str(tmp_path / "foundation.ptd"))
    found = program.forward((inputs,))[0]
    assert found.dtype is torch.float32
    assert apart(found, module(inputs)) < tolerance(WIDTH + INNER, unit=unit)


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_a_weight_that_float16_cannot_hold_is_refused(kind: Literal["linear", "embedding"]) -> None:
    scheme = POLICY_REGISTRY["fp16"].linear
    assert scheme is not None
    weight = torch.ones(4, 4)
    weight[1, 2] = -7e4
    with pytest.raises(ModelError, match=r"7e\+04, and float16 ends at 65504"):
        quantized_layer(weight, kind, scheme, scale_search="fitted")
