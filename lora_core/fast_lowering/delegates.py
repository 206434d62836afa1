"""Say what a delegate gives without running the graph that it was made of."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lora_core.fast_lowering.patching import Patches


def answer_for_delegates(patches: Patches) -> None:
    """Give a delegate's fake outputs as its own graph notes them.

    torch 2.13.0 (`_higher_order_ops/executorch_call_delegate.py`) builds a module of the delegated graph and runs it on
    fake tensors in each replay that comes to the call. The graph was traced with those very shapes, and its outputs
    hold what came of them. Delegates that write to their inputs run. Drop when the fake implementation looks there.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    # Its package has the operator under the module's name.
    module = import_module("torch._higher_order_ops.executorch_call_delegate")
    run = module.call_delegate_cpu

    def answer(lowered_module: Any, *args: Any) -> Any:
        noted = _noted(lowered_module.original_module)
        faked = all(isinstance(each, FakeTensor) for each in noted) and any(isinstance(a, FakeTensor) for a in args)
        if not noted or not faked:
            return run(lowered_module, *args)
        outputs = [value.detach() for value in noted]
        return lowered_module.original_module.call_spec.out_spec.unflatten(outputs)

    patches.replace(module, "call_delegate_cpu", answer)


def _noted(program: Any) -> list[Any]:
    """Return the fake values of a program's outputs; none if there are others than results."""
    signature = program.graph_signature
    (outputs,) = program.graph.output_node().args
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return []
    return [getattr(node, "meta", {}).get("val") for node in outputs]
