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
        return self.value is value and self.operator is operator and _all_same(self.inputs, inputs)

    def __deepcopy__(self, _memo: Any) -> _Outcome:
        return self  # it is of the one value, not of copies


def _all_same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(_same, some, others))


def _same(a: Any, b: Any) -> bool:
    """Be the same object, or an equal plain value: two tensors or symbols of equal shape are not the same."""
    return a is b or (type(a) is type(b) and type(a) in _PLAIN and a == b)


_PLAIN = frozenset({int, float, bool, str})
_OUTCOME = "_lora_core_outcome"


def replay_from_memory(patches: Patches) -> None:
    """Let passes reuse a node's fake value when operator and inputs are those that gave it.

    ExecuTorch 1.5.1 (`exir/pass_base.py`), and torch 2.13.0 (`_export/pass_base.py`) in the first of them, run every
    operator again on fake tensors in each of some twenty passes, most of which change a few nodes. A fake kernel
    computes shape, type and strides only, so the same operator on the same input objects gives an equal value. A value
    that comes out as the node's was is that one again, so that nothing that depends on it is computed for a change that
    changes no shape. An outcome belongs to the node that holds its value, so no two nodes come to share one, and lives
    as long as a tensor's value. What a trace gave is computed once more: it knows other things of its symbols.
    Operators that write to their inputs always run. Drop when these passes leave untouched nodes alone.
    """
    from executorch.exir.pass_base import ProxyValue, _ExportPassBase
    from torch._export.pass_base import ProxyValue as FirstProxyValue
    from torch._export.pass_base import _ExportPassBaseDeprecatedDoNotUse as FirstPassBase

    memory = _Memory()
    patches.undo(memory.forget)
    for base, made in ((_ExportPassBase, ProxyValue), (FirstPassBase, FirstProxyValue)):
        _remember(patches, base, made, memory)


def _remember(patches: Patches, base: Any, proxy_value: Any, memory: _Memory) -> None:
    from executorch.exir.dialects.edge._ops import EdgeOpOverload
    from torch.utils import _pytree as pytree

    run_node, fx = base.ExportInterpreter.run_node, base._fx
    is_pure = _purity(base)

    def remember_node(self: Any, node: Any) -> Any:
        self.callback._replayed_node = node
        return run_node(self, node)

    def fx_from_memory(self: Any, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        node = getattr(self, "_replayed_node", None)
        value = None if node is None else node.meta.get("val")
        operator = target._op if isinstance(target, EdgeOpOverload) else target
        if kind != "call_function" or value is None or not is_pure(operator):
            return fx(self, kind, target, args, kwargs, meta)
        self._replayed_node = None  # one outcome answers one call
        inputs = list(_inputs((args, kwargs)))
        known = memory.outcome(value, operator, inputs)
        if known is None:
            made = fx(self, kind, target, args, kwargs, meta)
            new, tensor_meta = made.node.meta["val"], made.node.meta["tensor_meta"]
            if new is made.data and _alike(new, value):
                made.node.meta["val"] = new = value
                made = proxy_value(value, made.proxy)
            memory.keep(
                _Outcome(value=new, tensor_meta=tensor_meta, result=made.data, operator=operator, inputs=inputs)
            )
            return made
        proxies = pytree.tree_map_only(proxy_value, lambda x: x.proxy, (args, kwargs))
        proxy = self.tracer.create_proxy(kind, target, *proxies, name=_name(self.tracer.graph, target))
        proxy.node.meta.update(meta.data)
        proxy.node.meta["val"], proxy.node.meta["tensor_meta"] = value, known.tensor_meta
        return proxy_value(known.result, proxy)

    patches.replace(base.ExportInterpreter, "run_node", remember_node)
    patches.replace(base, "_fx", fx_from_memory)


class _Memory:
    """Outcomes: a tensor's value holds its own, those of other values are forgotten in the end."""

    def __init__(self) -> None:
        self._others: dict[int, _Outcome] = {}

    def outcome(self, value: Any, operator: Any, inputs: list[Any]) -> _Outcome | None:
        """Return what running `operator` on `inputs` for the node that holds `value` would repeat, if it is known."""
        known: _Outcome | None = getattr(value, _OUTCOME, None) or self._others.get(id(value))
        return known if known is not None and known.answers(value, operator, inputs) else None

    def keep(self, outcome: _Outcome) -> None:
        """Remember an outcome in place of any before it."""
        if _is_fake(outcome.value):
            setattr(outcome.value, _OUTCOME, outcome)
        else:
            self._others[id(outcome.value)] = outcome

    def forget(self) -> None:
        """Let go of what no tensor holds."""
        self._others.clear()


def _is_fake(value: Any) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return type(value) is FakeTensor


def _alike(new: Any, old: Any) -> bool:
    """Say whether two fake tensors differ in nothing but being two."""
    return (
        _is_fake(new)
        and _is_fake(old)
        and new.fake_mode is old.fake_mode
        and new.constant is None
        and old.constant is None
        and (new.dtype, new.device, new.layout) == (old.dtype, old.device, old.layout)
        and new.requires_grad == old.requires_grad
        and new.dim() == old.dim()
        and all(map(_equal, _numbers(new), _numbers(old)))
    )


def _numbers(tensor: Any) -> list[Any]:
    return [*tensor.shape, *tensor.stride(), tensor.storage_offset()]


def _equal(a: Any, b: Any) -> bool:
    """Compare sizes without asking what is known of symbols."""
    if type(a) is int or type(b) is int:
        return type(a) is type(b) and bool(a == b)
    return bool(a.node.shape_env is b.node.shape_env and a.node._expr == b.node._expr)


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


def _purity(base: Any) -> Any:
    """Return the test whether running an operator again on the same inputs says nothing new to a pass."""
    import torch
    from executorch.exir.delegate import executorch_call_delegate
    from executorch.exir.pass_base import _ExportPassBase

    impure_tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
    known = {
        # Unknown but fixed: a second symbol for the same scalar would say nothing new, but torch's passes note it.
        torch.ops.aten._local_scalar_dense.default: base is _ExportPassBase,
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
