"""Constant methods that say which adapters a program has: plain execution plans, written without ExecuTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lora_core_coreml.program.naming import ADAPTER_METHODS, ADAPTERS, kinds, method_name
from lora_core_coreml.storage.pte import Program


def adapter_plans(names: Sequence[str], multifunction: bool) -> list[Program]:
    """Return the constant methods `adapters` (names) and `adapter_methods` (all methods of all adapters, in order)."""
    methods = [method_name(name, kind, multifunction) for name in names for kind in kinds(multifunction)]
    return [constant_strings_plan(ADAPTERS, names), constant_strings_plan(ADAPTER_METHODS, methods)]


def constant_strings(program: Program, name: str) -> list[str] | None:
    """Return the strings of the constant method `name`, None if the program has no such method."""
    for plan in program["execution_plan"]:
        if plan["name"] == name:
            return [plan["values"][index]["val"]["string_val"] for index in plan["outputs"]]
    return None


def constant_strings_plan(name: str, values: Sequence[str]) -> Program:
    """Return an execution plan as ExecuTorch emits one for a constant list of strings (`_emit_prim_getters`)."""
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    structure = [1, {"type": "builtins.list", "context": "null", "children_spec": [leaf] * len(values)}]
    return {
        "name": name,
        "container_meta_type": {"encoded_inp_str": "", "encoded_out_str": json.dumps(structure)},
        "values": [{"val_type": "String", "val": {"string_val": value}} for value in values],
        "inputs": [],
        "outputs": list(range(len(values))),
        "chains": [{"inputs": [], "outputs": [], "instructions": []}],
        "operators": [],
        "delegates": [],
        "non_const_buffer_sizes": [0],
    }
