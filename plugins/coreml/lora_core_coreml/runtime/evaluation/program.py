"""A whole method of a stored program: ExecuTorch's execution plan with its CoreML delegates evaluated."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.errors import BundleError, UnsupportedError
from lora_core.intake.plain_json import parse_json
from lora_core_coreml.runtime.evaluation.function import EvaluatedFunction, Precision
from lora_core_coreml.storage import mil, package, pte
from lora_core_coreml.storage.messages import MilModel

_MAGIC = b"CMJR"
_NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "DOUBLE": np.float64,
    "LONG": np.int64,
    "INT": np.int32,
    "SHORT": np.int16,
    "CHAR": np.int8,
    "BYTE": np.uint8,
    "BOOL": np.bool_,
}


class EvaluatedProgram:
    """A `.pte` whose methods can be evaluated. Functions are loaded when a method is first used, and kept."""

    def __init__(self, path: Path) -> None:
        """Read the program; its packages are unpacked to a temporary directory until `close`."""
        self._stamp = _stamp(path)
        self._stored = pte.read(path)
        self._packages = {found.key: found for found in package.stored_packages(self._stored)}
        self._folder = tempfile.TemporaryDirectory(prefix="lora-core-coreml-")
        self._models: dict[str, tuple[MilModel, Path, Mapping[str, Any]]] = {}
        self._functions: dict[tuple[str, str], EvaluatedFunction] = {}
        self._plans = {plan["name"]: plan for plan in self._stored.program["execution_plan"]}

    @property
    def path(self) -> Path:
        """The file that it was read from."""
        return self._stored.path

    @property
    def methods(self) -> frozenset[str]:
        """All methods that run, without the constant ones."""
        return frozenset(name for name, plan in self._plans.items() if plan["delegates"])

    def constant(self, name: str) -> list[Any]:
        """Return the values of the constant method `name`; raises `BundleError` if there is none."""
        if name not in self._plans:
            raise BundleError(f"The program has no constant method {name!r}", where=str(self._stored.path))
        plan = self._plans[name]
        return [self._constant_value(plan["values"][index]) for index in plan["outputs"]]

    def has_constant(self, name: str) -> bool:
        """Say whether there is a constant method `name`."""
        return name in self._plans

    def input_count(self, method: str) -> int:
        """Return how many flat inputs `method` takes."""
        return len(self._plans[method]["inputs"])

    def input_types(self, method: str) -> list[Any]:
        """Return the numpy types of the flat inputs of `method`."""
        plan = self._plans[method]
        return [_NUMPY[plan["values"][index]["val"]["scalar_type"]] for index in plan["inputs"]]

    def input_shapes(self, method: str) -> list[tuple[int, ...]]:
        """Return the shapes of the flat inputs of `method`."""
        plan = self._plans[method]
        return [tuple(map(int, plan["values"][index]["val"]["sizes"])) for index in plan["inputs"]]

    def load(self, method: str) -> None:
        """Load the functions of `method`; raises `BundleError` if another process has changed the program since."""
        try:
            for number in range(len(self._plans[method]["delegates"])):
                self._delegate(method, number)
        finally:
            # What is read of a file that another has taken the place of is anything, or nothing that can be read.
            if _stamp(self.path) != self._stamp:
                raise BundleError(
                    "The bundle was changed after it was opened", where=str(self.path), remedy="Open it again."
                )

    def unload(self, method: str) -> None:
        """Forget the functions of `method`."""
        for key, name in [found for found in self._functions if found[1] == method]:
            del self._functions[key, name]

    def operators(self, method: str) -> frozenset[str]:
        """Return the kinds of CoreML operators in `method`."""
        delegates = range(len(self._plans[method]["delegates"]))
        return frozenset().union(*(self._delegate(method, number)[0].operators for number in delegates))

    def run(self, method: str, inputs: Sequence[npt.NDArray[Any]], precision: Precision) -> list[npt.NDArray[Any]]:
        """Evaluate `method` on flat inputs and return its flat outputs; raises `UnsupportedError`."""
        plan = self._plans[method]
        if len(inputs) != len(plan["inputs"]):
            raise BundleError(f"Method {method!r} takes {len(plan['inputs'])} inputs, not {len(inputs)}")
        values = dict(zip(plan["inputs"], inputs, strict=True))
        for instruction in plan["chains"][0]["instructions"]:
            if instruction["instr_args_type"] != "DelegateCall":
                raise UnsupportedError(
                    f"Method {method!r} has steps outside CoreML ({_operator(plan, instruction)}), which evaluation "
                    "does not cover",
                    where=method,
                )
            call = instruction["instr_args"]
            function, interface = self._delegate(method, call["delegate_index"])
            names, results = interface["inputNames"], interface["outputNames"]
            arguments = [self._value(plan, values, index) for index in call["args"][: len(names)]]
            outputs = function.run(dict(zip(names, arguments, strict=True)), precision)
            for index, name in zip(call["args"][len(names) :], results, strict=True):
                values[index] = outputs[name]
        return [values[index] for index in plan["outputs"]]

    def close(self) -> None:
        """Forget everything that was loaded and remove the unpacked packages."""
        self._functions.clear()
        self._folder.cleanup()

    def _delegate(self, method: str, number: int) -> tuple[EvaluatedFunction, Mapping[str, Any]]:
        reference = self._stored.read_segment(self._plans[method]["delegates"][number]["processed"]["index"])
        if not reference.startswith(_MAGIC):
            raise BundleError(f"Method {method!r} does not refer to a shared package", where=str(self._stored.path))
        target = parse_json(reference.removeprefix(_MAGIC))
        key, name = target["key"], target["functionName"]
        model, weights, metadata = self._model(key)
        if (key, name) not in self._functions:
            if name not in model.mlProgram.functions:
                raise BundleError(f"The package {key} has no function {name!r}", where=str(self._stored.path))
            self._functions[key, name] = EvaluatedFunction(model, name, weights)
        return self._functions[key, name], metadata["methods"][method]

    def _model(self, key: str) -> tuple[MilModel, Path, Mapping[str, Any]]:
        if key not in self._models:
            if key not in self._packages:
                raise BundleError(f"The program has no package {key}", where=str(self._stored.path))
            found = self._packages[key]
            # Not named by its key: that is the file's word, and may lead anywhere.
            root = found.extract(Path(self._folder.name) / f"package_{len(self._models)}")
            model = mil.parse_model(found.read(package.MODEL))
            metadata = parse_json(found.read("metadata.json"))
            self._models[key] = (model, root / "Data" / "com.apple.CoreML" / "weights", metadata)
        return self._models[key]

    def _value(self, plan: pte.Program, values: Mapping[int, Any], index: int) -> Any:
        return values[index] if index in values else self._constant_value(plan["values"][index])

    def _constant_value(self, value: Mapping[str, Any]) -> Any:
        content = value["val"]
        if value["val_type"] != "Tensor":
            return next(iter(content.values()))
        offsets = self._stored.program["constant_segment"]["offsets"]
        start, _ = self._stored.segment(self._stored.program["constant_segment"]["segment_index"])
        dtype, count = np.dtype(_NUMPY[content["scalar_type"]]), int(np.prod(content["sizes"]))
        with self._stored.path.open("rb") as file:
            file.seek(start + int(offsets[content["data_buffer_idx"]]))
            data = file.read(count * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(content["sizes"])


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _operator(plan: pte.Program, instruction: Mapping[str, Any]) -> str:
    if instruction["instr_args_type"] == "KernelCall":
        return str(plan["operators"][instruction["instr_args"]["op_index"]]["name"])
    return str(instruction["instr_args_type"])
