"""Generate a GraphModule's Python code only when somebody reads or calls it."""

from __future__ import annotations

import weakref
from typing import Any

from lora_core.fast_lowering.patching import Patches


class _Pending:
    """Stands on a GraphModule's own class for what `recompile` would have made, and makes it on first access."""

    def __init__(self, module: Any, name: str, recompile: Any) -> None:
        self._module, self._name, self._recompile = weakref.ref(module), name, recompile

    def settle(self) -> None:
        """Compile for real, once."""
        module = self._module()
        if module is None:  # the class outlived its only instance; nothing can be called any more
            raise ReferenceError("the GraphModule of this class is gone")
        cls = type(module)
        for name in _DEFERRED:
            if isinstance(vars(cls).get(name), _Pending):
                delattr(cls, name)
        self._recompile(module)

    def __get__(self, instance: Any, owner: type) -> Any:
        self.settle()
        return getattr(owner if instance is None else instance, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        delattr(type(instance), self._name)
        setattr(instance, self._name, value)


class _Compiled:
    """What `recompile` returns: the `PythonCode`, made when one of its fields is read."""

    def __init__(self, module: Any, recompile: Any) -> None:
        self._module, self._recompile = module, recompile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recompile(self._module), name)


# What `recompile` sets, and the two that read it from the instance's `__dict__`.
_DEFERRED = ("forward", "_code", "_lineno_map", "_prologue_start", "__reduce__", "__reduce_package__")


def recompile_lazily(patches: Patches) -> None:
    """Defer `GraphModule.recompile` until the code is needed.

    Passes call it many times for one graph and hardly ever run the code: interpreters walk the graph. torch has the
    idea as `_LazyGraphModule`, but only for modules made as such. A module keeps working after the block, because
    the deferral sits on its own class. Drop when torch 2.13.0's `recompile` is lazy for every GraphModule.
    """
    from torch.export import _trace
    from torch.fx import GraphModule
    from torch.fx._lazy_graph_module import _LazyGraphModule
    from torch.fx.graph import _PyTreeCodeGen

    original = GraphModule.recompile

    def recompile(self: Any) -> Any:
        cls = type(self)
        if isinstance(self, _LazyGraphModule) or cls.__qualname__.rpartition(".")[2] != "GraphModuleImpl":
            return original(self)
        if isinstance(self._graph._codegen, _PyTreeCodeGen):
            self._in_spec = self._graph._codegen.pytree_info.in_spec
            self._out_spec = self._graph._codegen.pytree_info.out_spec
        for name in _DEFERRED:
            setattr(cls, name, _Pending(self, name, original))
        self._recompile_submodules()
        return _Compiled(self, original)

    patches.replace(GraphModule, "recompile", recompile)

    # Dynamo reads `forward` of the classes it traces without asking descriptors.
    export_to_torch_ir = _trace._export_to_torch_ir

    def settled_export(f: Any, *args: Any, **kwargs: Any) -> Any:
        for module in f.modules():
            pending = vars(type(module)).get("forward")
            if isinstance(pending, _Pending):
                pending.settle()
        return export_to_torch_ir(f, *args, **kwargs)

    patches.replace(_trace, "_export_to_torch_ir", settled_export)
