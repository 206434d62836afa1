"""One stored CoreML function, evaluated operation by operation with coremltools' own operator semantics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.errors import BundleError, UnsupportedError
from lora_core_coreml.quiet import coremltools, quiet
from lora_core_coreml.runtime.evaluation.operators import REFERENCES
from lora_core_coreml.storage import mil
from lora_core_coreml.storage.messages import MilModel

Precision = Literal["float16", "float32"]
Arrays = Mapping[str, npt.NDArray[Any]]


@attrs.frozen
class _Known:
    """What coremltools reads as the known value of a variable."""

    val: Any


class EvaluatedFunction:
    """A function of a CoreML model, ready to evaluate.

    `precision` float16 rounds every result that the program declares as float16, as a strict machine would; float32
    keeps all intermediate results in float32 (weights stay what is stored). Real hardware lies between the two.
    """

    def __init__(self, model: MilModel, name: str, weights: Path) -> None:
        """Load function `name` of a model's protobuf; `weights` is the directory of its blob file.

        Raises `BundleError` if the stored function is not one that coremltools can load.
        """
        ct = coremltools()
        from coremltools.converters.mil.frontend.milproto.load import load_mil_proto

        program = mil.new_model().mlProgram
        program.version = model.mlProgram.version
        program.functions[name].CopyFrom(model.mlProgram.functions[name])
        ours = ct.proto.MIL_pb2.Program()
        ours.ParseFromString(program.SerializeToString())
        try:
            with quiet():
                loaded = load_mil_proto(ours, model.specificationVersion, str(weights))
        except Exception as error:  # whatever coremltools raises on a damaged program: ours from it
            raise BundleError(f"CoreML function {name!r} cannot be loaded: {error}", where=name) from error
        self._function = loaded.functions[name]
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self.name = name
        self.operators = frozenset(op.op_type for op in self._function.operations) - {"const"}

    def run(self, inputs: Arrays, precision: Precision) -> dict[str, npt.NDArray[Any]]:
        """Return the function's outputs by name; raises `UnsupportedError` naming an operator that cannot be run."""
        floating = np.float16 if precision == "float16" else np.float32
        for name, variable in self._function.inputs.items():
            value = inputs[name]
            if value.shape != tuple(variable.shape):
                raise BundleError(
                    f"Input {name!r} has shape {value.shape}, not {tuple(variable.shape)}", where=self.name
                )
            variable._sym_val = _Known(value.astype(floating) if _is_float(value) else value)
        try:
            # Once for all operations: each time, the caches of all loggers of the process are emptied.
            with quiet(), np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
                for operation in self._function.operations:
                    if operation.op_type != "const":
                        self._evaluate(operation, floating)
            return {variable.name: np.asarray(_value(variable)) for variable in self._function.outputs}
        finally:
            self._forget()

    def _evaluate(self, operation: Any, floating: Any) -> None:
        results: Any
        if operation.op_type.startswith("constexpr_"):
            results = self._constant(operation)
        elif operation.op_type in REFERENCES:
            results = REFERENCES[operation.op_type]({name: _known(v) for name, v in operation.inputs.items()})
        else:
            results = self._infer(operation)
        several = isinstance(results, list | tuple) and len(operation.outputs) == len(results)
        for variable, result in zip(operation.outputs, results if several else [results], strict=True):
            value = np.asarray(result)
            if not operation.op_type.startswith("constexpr_") and _is_float(value):
                value = value.astype(floating if _declared(variable) == "fp16" else np.float32)
            variable._sym_val = _Known(value)

    def _constant(self, operation: Any) -> npt.NDArray[Any]:
        name = operation.outputs[0].name
        if name not in self._constants:
            self._constants[name] = operation.materialized_val_inference()
        return self._constants[name]

    def _infer(self, operation: Any) -> Any:
        try:
            results = operation.value_inference()
        except Exception as error:  # whatever an operator raises: ours from it
            raise UnsupportedError(
                f"Operator {operation.op_type!r} of {self.name!r} cannot be evaluated: {error}", where=operation.name
            ) from error
        if results is None:
            raise UnsupportedError(f"coremltools cannot evaluate operator {operation.op_type!r}", where=operation.name)
        return results

    def _forget(self) -> None:
        for operation in self._function.operations:
            if operation.op_type != "const":
                for variable in operation.outputs:
                    variable._sym_val = None


def _known(variable: Any) -> Any:
    return tuple(map(_known, variable)) if isinstance(variable, list | tuple) else _value(variable)


def _value(variable: Any) -> Any:
    return None if variable is None or variable._sym_val is None else variable._sym_val.val


def _is_float(value: npt.NDArray[Any]) -> bool:
    return bool(np.issubdtype(value.dtype, np.floating))


def _declared(variable: Any) -> str:
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(variable.dtype))
