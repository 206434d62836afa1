# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Calls of a method, kernels' and delegates', as elements."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from executorch.exir.schema import BackendDelegateInlineData, DataLocation, DelegateCall, ExecutionPlan, KernelCall

from lora_core_xnnpack.stamping.elements import Element, NotStampableError
from lora_core_xnnpack.stamping.keys import Payload, StoredKey, mask, unmask


@attrs.frozen(kw_only=True)
class Call:
    """One instruction: an operator (name, a zero character, overload) or a delegate (its backend), and the values that
    it takes.
    """

    name: str
    arguments: tuple[int, ...]
    payload: Payload | None = None


@attrs.frozen(kw_only=True)
class _Kind:
    """What a call has in common with those of other layers: all but numbers."""

    name: str
    arguments: int
    length: int | None
    keys: tuple[tuple[int, StoredKey, int], ...]


def read_calls(
    method: ExecutionPlan, data: Sequence[BackendDelegateInlineData], known: Mapping[str, StoredKey]
) -> list[Call]:
    """Return the instructions of `method`; raises `NotStampableError` for control flow and for unknown keys."""
    if len(method.chains) != 1:
        raise NotStampableError("the program has control flow")
    calls = []
    delegates = 0
    for instruction in method.chains[0].instructions:
        arguments: Any = instruction.instr_args
        if isinstance(arguments, KernelCall):
            operator = method.operators[arguments.op_index]
            calls.append(Call(name=f"{operator.name}\0{operator.overload}", arguments=tuple(arguments.args)))
        elif isinstance(arguments, DelegateCall) and arguments.delegate_index == delegates:
            delegate = method.delegates[delegates]
            if delegate.processed.location is not DataLocation.INLINE or delegate.compile_specs:
                raise NotStampableError("a delegate is stored in a way that is not known here")
            payload = Payload.read(data[delegate.processed.index].data, known)
            calls.append(Call(name=delegate.id, arguments=tuple(arguments.args), payload=payload))
            delegates += 1
        else:
            raise NotStampableError("the program has control flow")
    return calls


def instruction_element(call: Call, uses: tuple[object, ...]) -> Element:
    """Return a call as an element; `uses` tell it from others that look alike.

    Its numbers are its values, those in its keys' paths, and its payload's words.
    """
    numbers = list(call.arguments)
    keys = []
    payload = call.payload
    for offset, key in payload.keys if payload else ():
        masked, found = mask(key)
        keys.append((offset, masked, len(found)))
        numbers += found
    if payload:
        padded = payload.data + bytes(-len(payload.data) % 4)
        numbers += struct.unpack(f"<{len(padded) // 4}I", padded)
    kind = _Kind(
        name=call.name,
        arguments=len(call.arguments),
        length=len(payload.data) if payload else None,
        keys=tuple(keys),
    )
    return Element(kind=kind, numbers=tuple(numbers), hints=(uses,), references=len(call.arguments))


def read_instruction(element: Element) -> Call:
    """Return the call that `instruction_element` was given."""
    kind, numbers = element.kind, element.numbers
    assert isinstance(kind, _Kind)
    arguments, numbers = numbers[: kind.arguments], numbers[kind.arguments :]
    if kind.length is None:
        return Call(name=kind.name, arguments=arguments)
    keys = []
    for offset, masked, count in kind.keys:
        keys.append((offset, unmask(masked, numbers[:count])))
        numbers = numbers[count:]
    try:
        data = struct.pack(f"<{len(numbers)}I", *numbers)[: kind.length]
    except struct.error as error:
        raise NotStampableError("a number in a delegate does not go on with the layers") from error
    return Call(name=kind.name, arguments=arguments, payload=Payload(data=data, keys=tuple(keys)))
