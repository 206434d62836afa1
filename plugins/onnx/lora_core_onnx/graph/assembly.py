"""A graph as it grows: nodes, inputs, outputs, small constants; large tensors are in the weights file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_core_onnx.names import WEIGHTS
from lora_core_onnx.storage.weights import External

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 21, 10
CONTRIB = "com.microsoft"
_CONTRIB_OPERATORS = frozenset(
    {"GatherBlockQuantized", "GroupQueryAttention", "MatMulNBits", "SkipSimplifiedLayerNormalization"}
)
Dimension = int | str


class Assembly:
    """Collects what a model is made of. Tensors are known by name; an output's name is also its node's."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def apply(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str | Sequence[str],
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a node and return the name of its first output."""
        from onnx import helper

        outputs = [output] if isinstance(output, str) else list(output)
        domain = CONTRIB if operator in _CONTRIB_OPERATORS else ""
        node = helper.make_node(operator, inputs, outputs, name=outputs[0], domain=domain, **(attributes or {}))
        self._nodes.append(node)
        return outputs[0]

    def integers(self, name: str, values: Sequence[int] | int) -> str:
        """Add an int64 constant, a scalar or a list, once by name; return its name."""
        from onnx import TensorProto, helper

        if name not in self._constants:
            listed = [values] if isinstance(values, int) else list(values)
            dims = [] if isinstance(values, int) else [len(listed)]
            self._constants[name] = helper.make_tensor(name, TensorProto.INT64, dims, listed)
        return name

    def input(self, name: str, dtype: int, shape: Sequence[Dimension]) -> str:
        """Add an input that every call gives; return its name."""
        from onnx import helper

        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def optional_input(self, name: str, dtype: int, shape: Sequence[Dimension]) -> str:
        """Add an input that calls may leave out; without it a size that the graph does not fix is 0."""
        from onnx import helper

        empty = [size if isinstance(size, int) else 0 for size in shape]
        self._constants[name] = helper.make_tensor(name, dtype, empty, b"", raw=True)
        return self.input(name, dtype, shape)

    def output(self, name: str, dtype: int, shape: Sequence[Dimension]) -> None:
        """Declare that a tensor is given back."""
        from onnx import helper

        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def model(self, stored: Sequence[External], metadata: Mapping[str, str]) -> bytes:
        """Return the serialized model, whose large tensors are `stored`."""
        from onnx import helper

        initializers = [*self._constants.values(), *map(_external, stored)]
        graph = helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="lora-core")
        helper.set_model_props(made, dict(metadata))
        return bytes(made.SerializeToString(deterministic=True))


def _external(tensor: External) -> onnx.TensorProto:
    from onnx import StringStringEntryProto, TensorProto

    place = {"location": WEIGHTS, "offset": str(tensor.offset), "length": str(tensor.size)}
    return TensorProto(
        name=tensor.name,
        data_type=tensor.dtype,
        dims=tensor.shape,
        data_location=TensorProto.EXTERNAL,
        external_data=[StringStringEntryProto(key=key, value=value) for key, value in place.items()],
    )
