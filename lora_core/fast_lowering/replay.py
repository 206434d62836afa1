"""Remember what a node's operator gave for the very same inputs, instead of running it again in each replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from lora_core.fast_lowering.patching import Patches


@attrs.frozen(kw_only=True)
class _Outcome:
    """An operator's result, with everything that it was computed from."""

    value: Any  # what `node.meta["val"]` holds
    tensor_meta: Any
    result: Any
    operator: Any
    inputs: list[Any]

    def answers(self, value: Any, operator: Any, inputs: list[Any]) -> bool:
        """Tell whether running `operator` on `inputs` for the node that holds `value` would only repeat this."""
        return (
            self.value is value
            and self.operator is operator
            and len(self.inputs) == len(inputs)
            and all(map(_same, self.inputs, inputs))
        )


def _same(a: Any, b: Any) -> bool:
    """Be the same object, or an equal plain value: two tensors or symbols of equal shape are not the same."""
    return a is b or (type(a) is type(b) and type(a) in _PLAIN and a == b)


_PLAIN = frozenset({int, float, bool, str})


def replay_from_memory(patches: Patches) -> None:
    """Let ExecuTorch's `ExportPass` reuse a node's fake value when operator and inputs are those that gave it.

    ExecuTorch 1.5.1 (`exir/pass_base.py`) runs every operator again on fake tensors in each of some twenty passes, most
    of which change a few nodes. A fake kernel computes shape, type and strides only, so the same
    operator on the same input objects gives an equal value. An outcome belongs to the node that holds its value, so
    no two nodes come to share one; the first replay computes all values, later ones only what a pass
    changed and what depends on it. Operators that write to their inputs always run. Drop when ExportPass leaves
    untouched nodes alone.
    """
    from executorch.exir.dialects.edge._ops import EdgeOpOverload
    from executorch.exir.pass_base import ProxyValue, _ExportPassBase
    from torch.utils import _pytree as pytree

    memory: dict[int, _Outcome] = {}
    patches.undo(memory.clear)
    interpreter = _ExportPassBase.ExportInterpreter
    run_node, fx = interpreter.run_node, _ExportPassBase._fx
    is_pure = _purity()

    def remember_node(self: Any, node: Any) -> Any:
        self.callback._replayed_value = node.meta.get("val")
        return run_node(self, node)

    def fx_from_memory(self: Any, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        value = getattr(self, "_replayed_value", None)
        operator = target._op if isinstance(target, EdgeOpOverload) else target
        if kind != "call_function" or value is None or not is_pure(operator):
            return fx(self, kind, target, args, kwargs, meta)
        self._replayed_value = None  # one outcome answers one call
        inputs = list(_inputs((args, kwargs)))
        known = memory.get(id(value))
        if known is None or not known.answers(value, operator, inputs):
            made = fx(self, kind, target, args, kwargs, meta)
            new, tensor_meta = made.node.meta["val"], made.node.meta["tensor_meta"]
            memory[id(new)] = _Outcome(
                value=new, tensor_meta=tensor_meta, result=made.data, operator=operator, inputs=inputs
            )
            return made
        proxies = pytree.tree_map_only(ProxyValue, lambda x: x.proxy, (args, kwargs))
        proxy = self.tracer.create_proxy(kind, target, *proxies, name=_name(self.tracer.graph, target))
        proxy.node.meta.update(meta.data)
        proxy.node.meta["val"], proxy.node.meta["tensor_meta"] = value, known.tensor_meta
        return ProxyValue(known.result, proxy)

    patches.replace(interpreter, "run_node", remember_node)
    patches.replace(_ExportPassBase, "_fx", fx_from_memory)


def _inputs(argument: Any) -> Iterator[Any]:
    """Yield the leaves of nested arguments, and marks that tell one nesting from another."""
    if isinstance(argument, (list, tuple)):
        yield len(argument)
        for item in argument:
            yield from _inputs(item)
    elif isinstance(argument, dict):
        yield len(argument)
        for key, item in argument.items():
            yield key
            yield from _inputs(item)
    else:
        yield getattr(argument, "data", argument) if type(argument).__name__ == "ProxyValue" else argument


def _name(graph: Any, target: Any) -> str | None:
    """Return the name that `_fx` asks for."""
    import torch

    if isinstance(target, torch._ops.OpOverload):
        return str(graph._target_to_str(target.overloadpacket.__name__))
    return None


def _purity() -> Any:
    """Return the test whether running an operator again on the same inputs says nothing new."""
    import torch
    from executorch.exir.delegate import executorch_call_delegate

    impure_tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
    known = {
        # Unknown but fixed: a second symbol for the same scalar would say nothing new.
        torch.ops.aten._local_scalar_dense.default: True,
        torch.ops.higher_order.auto_functionalized_v2: True,
        executorch_call_delegate: True,
    }

    def is_pure(operator: Any) -> bool:
        if (answer := known.get(operator)) is None:
            if isinstance(operator, torch._ops.OpOverload):
                answer = not (operator._schema.is_mutable or impure_tags & set(operator.tags))
            else:
                answer = getattr(operator, "__module__", None) == "_operator" and operator.__name__ != "getitem"
            known[operator] = answer
        return answer

    return is_pure
