# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""A lowered program as lists of elements, and a program made of such lists."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from executorch.exir.schema import (
    BackendDelegate,
    BackendDelegateDataReference,
    BackendDelegateInlineData,
    DataLocation,
    DelegateCall,
    ExecutionPlan,
    Instruction,
    KernelCall,
    Operator,
    Program,
)

from lora_core_xnnpack.stamping import planning, values
from lora_core_xnnpack.stamping.elements import Element, Elements, Lists, NotStampableError
from lora_core_xnnpack.stamping.instructions import Call, instruction_element, read_calls, read_instruction
from lora_core_xnnpack.stamping.keys import StoredKey, Texts
from lora_core_xnnpack.stamping.planning import Requests
from lora_core_xnnpack.stamping.values import Uses

VALUES, INSTRUCTIONS = "values", "instructions"
"""The names of two lists of each method, after the method's and a colon."""
_USES = 2
_REST = "parts that are the same at every depth"


def lists(program: Program, requests: Mapping[str, Requests], known: Mapping[str, StoredKey]) -> Lists:
    """Take `program` apart.

    `requests` are what each method that computes asks of the memory planner, `known` the content keys that may stand in
    payloads. Raises `NotStampableError` for what is not understood.
    """
    found: dict[str, Elements] = {}
    frames = []
    for method in program.execution_plan:
        if method.name not in requests:
            frames.append(Element(kind=repr(method)))
            continue
        calls = read_calls(method, program.backend_delegate_data, known)
        frames.append(Element(kind=repr(_frame(method))))
        found |= {
            f"{method.name}: {name}": each for name, each in _method(method, calls, requests[method.name]).items()
        }
    rest = copy.copy(program)
    rest.execution_plan, rest.backend_delegate_data = [], []
    return {**found, _REST: (*frames, Element(kind=repr(rest)))}


def _frame(method: ExecutionPlan) -> ExecutionPlan:
    """Return the method without its lists."""
    frame = copy.copy(method)
    frame.values, frame.inputs, frame.outputs, frame.chains = [], [], [], []
    frame.operators, frame.delegates, frame.non_const_buffer_sizes = [], [], []
    return frame


def _method(method: ExecutionPlan, calls: Sequence[Call], requests: Requests) -> dict[str, Elements]:
    uses = _uses(calls)
    places = iter(requests.places)
    value_elements = []
    piece_uses: dict[int, Uses] = {}
    for index, value in enumerate(method.values):
        place = next(places, None) if values.is_planned(value) else None
        if place is not None:
            piece_uses.setdefault(place, uses.get(index, ()))
        value_elements.append(values.element(value, place, uses.get(index, ())))
    if next(places, None) is not None:
        raise NotStampableError("the program and its memory plan name different tensors")
    return {
        VALUES: tuple(value_elements),
        INSTRUCTIONS: tuple(
            instruction_element(call, tuple(uses[index] for index in call.arguments if index in new))
            for call, new in zip(calls, _new_values(calls), strict=True)
        ),
        "inputs": tuple(Element(kind="input", numbers=(index,)) for index in method.inputs),
        "outputs": tuple(Element(kind="output", numbers=(index,)) for index in method.outputs),
        "planned memory": tuple(
            Element(kind=piece.size, numbers=(piece.first, piece.last), hints=piece_uses.get(number, ()))
            for number, piece in enumerate(requests.pieces)
        ),
        "other memory": tuple(
            Element(kind=number, numbers=(size if number != planning.ARENA else 0,))
            for number, size in enumerate(method.non_const_buffer_sizes)
        ),
    }


def _uses(calls: Sequence[Call]) -> dict[int, Uses]:
    """Return for each value the first two calls that it is used in: what tells values apart that look alike."""
    uses: dict[int, Uses] = {}
    last: dict[int, int] = {}
    for number, call in enumerate(calls):
        for position, index in enumerate(call.arguments):
            if len(uses.get(index, ())) < _USES and last.get(index) != number:
                uses[index] = (*uses.get(index, ()), (call.name, position))
                last[index] = number
    return uses


def _new_values(calls: Sequence[Call]) -> list[frozenset[int]]:
    """Return for each call the values that no call before it used."""
    seen: set[int] = set()
    new = []
    for call in calls:
        new.append(frozenset(call.arguments) - seen)
        seen |= new[-1]
    return new


def program(like: Program, stretched: Lists, texts: Texts) -> Program:
    """Return the program that consists of `stretched` lists, and of `like` for what is the same at every depth.

    `texts` gives each key's text. Raises `NotStampableError` if numbers came out that no program has.
    """
    made = copy.copy(like)
    made.backend_delegate_data = []
    made.execution_plan = []
    stored: dict[bytes, int] = {}
    for method in like.execution_plan:
        if f"{method.name}: {VALUES}" in stretched:
            method = _made(method, stretched, texts, stored)
        made.execution_plan.append(method)
    made.backend_delegate_data = [BackendDelegateInlineData(data=data) for data in stored]
    return made


def planned_memory(program: Program) -> dict[str, int]:
    """Return the bytes of memory that each method that computes plans."""
    plans = program.execution_plan
    return {plan.name: sum(plan.non_const_buffer_sizes) for plan in plans if plan.delegates or plan.operators}


def _made(like: ExecutionPlan, stretched: Lists, texts: Texts, stored: dict[bytes, int]) -> ExecutionPlan:
    def of(name: str) -> Elements:
        return stretched[f"{like.name}: {name}"]

    pieces = [planning.piece(each.kind, each.numbers) for each in of("planned memory")]
    offsets, planned = planning.plan(pieces)
    made = copy.copy(like)
    made.values = [values.value(each, offsets) for each in of(VALUES)]
    made.inputs, made.outputs = ([each.numbers[0] for each in of(name)] for name in ("inputs", "outputs"))
    sizes = [each.numbers[0] for each in of("other memory")]
    made.non_const_buffer_sizes = [planned if index == planning.ARENA else size for index, size in enumerate(sizes)]
    _add_instructions(made, of(INSTRUCTIONS), texts, stored)
    return made


def _add_instructions(made: ExecutionPlan, elements: Elements, texts: Texts, stored: dict[bytes, int]) -> None:
    """Give `made` the instructions of `elements`, its operators in the order of first use, and its delegates."""
    operators: dict[tuple[str, str], int] = {}
    instructions: list[Instruction] = []
    made.delegates = []
    for element in elements:
        call = read_instruction(element)
        arguments: Any
        if call.payload is None:
            name, _, overload = call.name.partition("\0")
            arguments = KernelCall(
                op_index=operators.setdefault((name, overload), len(operators)), args=list(call.arguments)
            )
        else:
            arguments = DelegateCall(delegate_index=len(made.delegates), args=list(call.arguments))
            data = call.payload.with_texts(texts)
            made.delegates.append(
                BackendDelegate(
                    id=call.name,
                    processed=BackendDelegateDataReference(
                        location=DataLocation.INLINE, index=stored.setdefault(data, len(stored))
                    ),
                    compile_specs=[],
                )
            )
        instructions.append(Instruction(instr_args=arguments))
    made.chains = [copy.copy(made.chains[0])]
    made.chains[0].instructions = instructions
    made.operators = [Operator(name=name, overload=overload) for name, overload in operators]
