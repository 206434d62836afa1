"""The flatbuffer tables of an execution plan, as data: `exir/_serialize/program.fbs` of ExecuTorch 1.5.1.

A field is written by its type: a `struct` code for a number, `string`, a table's name, `[...]` for a vector of either,
and `|` and a union's name for a union, whose type stands in the field before it. Deprecated fields there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TABLES: Mapping[str, Sequence[str]] = {
    "ExecutionPlan": (
        *("string", "ContainerMetadata", "[EValue]", "[i]", "[i]", "[Chain]", "[Operator]", "[BackendDelegate]"),
        *("[q]", "[NonConstBufferDevice]"),
    ),
    "ContainerMetadata": ("string", "string"),
    "EValue": ("B", "|KernelTypes"),
    "Null": (),
    "Int": ("q",),
    "Bool": ("?",),
    "Double": ("d",),
    "Tensor": ("b", "i", "[i]", "[B]", "?", "I", "AllocationDetails", "b", "b", "ExtraTensorInfo"),
    "AllocationDetails": ("I", "I", "I"),
    "ExtraTensorInfo": ("Q", "string", "b", "b", "b"),
    "String": ("string",),
    "IntList": ("[q]",),
    "DoubleList": ("[d]",),
    "BoolList": ("[?]",),
    "TensorList": ("[i]",),
    "OptionalTensorList": ("[i]",),
    "Chain": ("[i]", "[i]", "[Instruction]", "[FrameList]"),
    "Instruction": ("B", "|InstructionArguments"),
    "KernelCall": ("i", "[i]"),
    "DelegateCall": ("i", "[i]"),
    "MoveCall": ("i", "i"),
    "JumpFalseCall": ("i", "i"),
    "FreeCall": ("i",),
    "FrameList": ("[Frame]",),
    "Frame": ("string", "i", "string", "string"),
    "Operator": ("string", "string"),
    "BackendDelegate": ("string", "BackendDelegateDataReference", "[CompileSpec]"),
    "BackendDelegateDataReference": ("b", "I"),
    "CompileSpec": ("string", "[B]"),
    "NonConstBufferDevice": ("i", "b", "b"),
}

UNIONS: Mapping[str, Sequence[str]] = {
    "KernelTypes": (
        *("Null", "Int", "Bool", "Double", "Tensor", "String", "IntList", "DoubleList", "BoolList", "TensorList"),
        "OptionalTensorList",
    ),
    "InstructionArguments": ("KernelCall", "DelegateCall", "MoveCall", "JumpFalseCall", "FreeCall"),
}

PLAN, NAME = "ExecutionPlan", 0  # the name is the first field of an execution plan
REFERENCE, REFERENCE_INDEX = "BackendDelegateDataReference", 1
TENSOR_NAME, TENSOR_NAME_FIELD = "ExtraTensorInfo", 1  # under which the data of a tensor is stored outside
