"""The graph as ONNX nodes: static shapes, activations and weights under the names that the encodings use.

Inputs and outputs are called as Genie expects them of a decoder on the NPU: keys are kept as (key/value heads, 1, head
size, positions), values as (key/value heads, 1, positions, head size).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.artifacts.context_binary import GRAPH
from lora_core_qnn_sim.graph.nodes import Node, build_nodes
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.handover import names
from lora_core_qnn_sim.handover.documents import ALPHA

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
FLOAT, INT32 = 1, 6
"""Values of `onnx.TensorProto.DataType`."""

GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = GELU_LINEAR * 0.044715
"""What the argument of the sigmoid in GELU's approximation is made of: x * (linear + cubic * x^2)."""


class DecoderModel:
    """Nodes, inputs, outputs and tensors as they are added; `weights` are the names of those to be stored.

    Without a `head` the graph ends with what the last layer gives to the residual stream.
    """

    opset, ir_version = 17, 8

    def __init__(self, spec: GraphSpec, *, head: bool = True) -> None:
        self._spec, self._dims, self._head = spec, spec.dims, head
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}
        self.weights: dict[str, None] = {}

    def add_all(self) -> None:
        """Add every node of the graph."""
        spec, dims = self._spec, self._dims
        self._input("input_ids", (1, spec.input_len), INT32)
        self._input("attention_mask", (1, 1, spec.input_len, spec.context_len))
        for part in ("cos", "sin"):
            self._input(f"position_ids_{part}", (1, 1, spec.input_len, dims.turned // 2))
            shape = self._numbers((spec.input_len, 1, dims.turned // 2))
            self._apply("Reshape", (f"position_ids_{part}", shape), f"{part}.rows")
        if spec.slots:
            self._input(ALPHA, (spec.alphas,))
        stream = f"layers.{dims.n_layers - 1}.mlp_add.output"
        for node in build_nodes(spec):
            self._add(node)
            if node.output == stream and not self._head:
                self._output(stream, (spec.input_len, dims.dim))
                return
        self._apply("Reshape", (dims.logits, self._numbers((1, spec.input_len, dims.vocab_size))), "logits")
        self._output("logits", (1, spec.input_len, dims.vocab_size))

    def store(self, name: str, values: Array, file: Any) -> None:
        """Append a weight to `file`, where the model will look for it."""
        from onnx import StringStringEntryProto, TensorProto

        data = np.ascontiguousarray(values, "<f4")
        place = {"location": names.MODEL_DATA, "offset": str(file.tell()), "length": str(data.nbytes)}
        file.write(data.data)
        self._tensors[name] = TensorProto(
            name=name,
            data_type=FLOAT,
            dims=data.shape,
            data_location=TensorProto.EXTERNAL,
            external_data=[StringStringEntryProto(key=key, value=value) for key, value in place.items()],
        )

    def serialized(self) -> bytes:
        """Return the model."""
        from onnx import helper

        graph = helper.make_graph(self._nodes, GRAPH, self._inputs, self._outputs, list(self._tensors.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version, producer_name="lora-core")
        return bytes(made.SerializeToString(deterministic=True))

    def _add(self, node: Node) -> None:
        out, inputs = node.output, node.inputs
        match node.op:
            case "embed":
                flat = self._apply("Reshape", ("input_ids", self._numbers((-1,))), "input_ids.flat")
                scale = self._dims.embedding_scale
                rows = out if scale == 1.0 else f"{out}.rows"
                self._apply("Gather", (self._named(node.weights["weight"]), flat), rows)
                if scale != 1.0:
                    self._apply("Mul", (rows, self._real(scale)), out)
            case "linear":
                bias = (self._named(node.weights["bias"]),) if "bias" in node.weights else ()
                self._apply("Gemm", (inputs[0], self._named(node.weights["weight"]), *bias), out, {"transB": 1})
            case "lora_a" | "lora_b":
                self._branch(node)
            case "norm":
                self._norm(node)
            case "rope":
                self._rope(node)
            case "attention":
                self._attention(node)
            case "add":
                factor, second = self._dims.added(out), inputs[1]
                if factor != 1.0:
                    second = self._apply("Mul", (second, self._real(factor)), f"{out}.scaled")
                self._apply("Add", (inputs[0], second), out)
            case "mul":
                self._apply("Mul", inputs, out)
            case "silu":
                self._apply("Mul", (inputs[0], self._apply("Sigmoid", inputs, f"{out}.sigmoid")), out)
            case "gelu_tanh":
                self._gelu_tanh(inputs[0], out)
            case "cap":
                self._cap(inputs[0], out, self._dims.logit_cap)
            case "part":
                self._part(node)
            case "rope_local" | "convolve":
                raise AssertionError("`dialog_problems` refuses graphs with two rotary tables, and convolutions")

    def _gelu_tanh(self, x: str, out: str) -> None:
        """Add x * sigmoid(x * (linear + cubic * x^2)): operator set 17 has no Gelu."""
        squares = self._apply("Mul", (x, x), f"{out}.squares")
        cubic = self._apply("Mul", (squares, self._real(GELU_CUBIC)), f"{out}.cubic")
        slope = self._apply("Add", (cubic, self._real(GELU_LINEAR)), f"{out}.slope")
        argument = self._apply("Mul", (x, slope), f"{out}.argument")
        self._apply("Mul", (x, self._apply("Sigmoid", (argument,), f"{out}.sigmoid")), out)

    def _cap(self, x: str, out: str, cap: float | None) -> None:
        assert cap is not None, "what is capped has a cap"
        share = self._apply("Tanh", (self._apply("Mul", (x, self._real(1 / cap)), f"{out}.ratio"),), f"{out}.share")
        self._apply("Mul", (share, self._real(cap)), out)

    def _part(self, node: Node) -> None:
        assert node.share is not None, "parts have a share"
        begin, end, total = node.share
        width = self._outputs_of(node.inputs[0].removesuffix(".output"))
        ends = tuple(self._numbers((width * place // total,)) for place in (begin, end))
        self._apply("Slice", (node.inputs[0], *ends, self._numbers((1,))), node.output)

    def _outputs_of(self, layer: str) -> int:
        """Return how many values a fused layer gives: those of a base that is not split."""
        dims = self._dims
        if layer.endswith("qkv_proj"):
            return (dims.n_heads + 2 * dims.n_kv_heads) * dims.head_dim
        return 2 * dims.hidden_dim

    def _branch(self, node: Node) -> None:
        weight, out = self._named(node.weights["weight"]), node.output
        (source,) = node.inputs
        if node.op == "lora_b":
            source = self._weighted(source, f"{out}.weighted")
        self._apply("Gemm", (source, weight), out, {"transB": 1})

    def _weighted(self, source: str, name: str) -> str:
        """Return the outputs of A, each block of ranks times its own strength."""
        count = self._spec.alphas
        if count == 1:
            return self._apply("Mul", (source, ALPHA), name)
        blocks = self._apply("Reshape", (source, self._numbers((self._spec.input_len, count, -1))), f"{name}.blocks")
        strengths = self._apply("Reshape", (ALPHA, self._numbers((count, 1))), f"{name}.strengths")
        product = self._apply("Mul", (blocks, strengths), f"{name}.product")
        return self._apply("Reshape", (product, self._numbers((self._spec.input_len, -1))), name)

    def _norm(self, node: Node) -> None:
        out, (source,) = node.output, node.inputs
        if node.heads:
            apart = self._numbers((-1, node.heads, self._dims.head_dim))
            source = self._apply("Reshape", (source, apart), f"{out}.apart")
        squares = self._apply("Mul", (source, source), f"{out}.squares")
        mean = self._apply("ReduceMean", (squares,), f"{out}.mean", {"axes": [-1]})
        positive = self._apply("Add", (mean, self._real(self._dims.norm_eps)), f"{out}.positive")
        size = self._apply("Sqrt", (positive,), f"{out}.root")
        made: list[tuple[str, tuple[str, str]]] = [("Div", (source, size))]
        if node.weights:
            made.append(("Mul", (f"{out}.0", self._named(node.weights["weight"]))))
        if node.heads:
            made.append(("Reshape", (f"{out}.{len(made) - 1}", self._numbers((-1, node.heads * self._dims.head_dim)))))
        for index, (operator, given) in enumerate(made):
            self._apply(operator, given, out if index + 1 == len(made) else f"{out}.{index}")

    def _rope(self, node: Node) -> None:
        out, width = node.output, self._dims.head_dim
        shaped = self._apply("Reshape", (node.inputs[0], self._numbers((-1, node.heads, width))), f"{out}.apart")
        halves, half = (f"{out}.first", f"{out}.second"), self._dims.turned // 2
        rest = (f"{out}.rest",) if 2 * half < width else ()
        sizes = (half, half, width - 2 * half) if rest else (half, half)
        self._apply("Split", (shaped, self._numbers(sizes)), (*halves, *rest), {"axis": -1})
        turned = []
        for mine, other, operator in ((*halves, "Sub"), (*halves[::-1], "Add")):
            along = self._apply("Mul", (mine, "cos.rows"), f"{mine}.cos")
            across = self._apply("Mul", (other, "sin.rows"), f"{other}.sin")
            turned.append(self._apply(operator, (along, across), f"{mine}.turned"))
        joined = self._apply("Concat", (*turned, *rest), f"{out}.joined", {"axis": -1})
        self._apply("Reshape", (joined, self._numbers((-1, node.heads * width))), out)

    def _attention(self, node: Node) -> None:
        dims, out = self._dims, node.output
        groups, width = dims.n_heads // dims.n_kv_heads, dims.head_dim
        query, key, value = node.inputs
        heads = self._turned(query, (-1, dims.n_kv_heads, groups, width), (1, 2, 0, 3), f"{out}.query")
        keys = self._cached("key", node.layer, key, (1, 2, 3, 0))
        values = self._cached("value", node.layer, value, (1, 2, 0, 3))
        products = self._apply("MatMul", (heads, keys), f"{out}.products")
        scores = self._apply("Mul", (products, self._real(1 / dims.score_divisor)), node.inner[0])
        if dims.score_cap is not None:
            self._cap(scores, node.inner[1], dims.score_cap)
            scores = node.inner[1]
        masked = self._apply("Add", (scores, "attention_mask"), f"{out}.masked")
        shares = self._apply("Softmax", (masked,), node.inner[-1], {"axis": -1})
        mixed = self._apply("MatMul", (shares, values), f"{out}.mixed")
        back = self._apply("Transpose", (mixed,), f"{out}.back", {"perm": [2, 0, 1, 3]})
        self._apply("Reshape", (back, self._numbers((-1, dims.n_heads * width))), out)

    def _cached(self, part: str, layer: int, made: str, order: Sequence[int]) -> str:
        """Return the keys or values of all positions: those of the cache, then the new ones, which are given back."""
        dims, spec = self._dims, self._spec
        new = self._turned(made, (-1, dims.n_kv_heads, 1, dims.head_dim), order, f"past_{part}_{layer}_out")
        axis = list(order).index(0)

        def shape(positions: int) -> tuple[int, ...]:
            rest = [dims.n_kv_heads, 1, dims.head_dim]
            return (*rest[:axis], positions, *rest[axis:])

        past = self._input(f"past_{part}_{layer}_in", shape(spec.context_len - spec.input_len))
        self._output(new, shape(spec.input_len))
        return self._apply("Concat", (past, new), f"past_{part}_{layer}.all", {"axis": axis})

    def _turned(self, source: str, shape: Sequence[int], order: Sequence[int], name: str) -> str:
        apart = self._apply("Reshape", (source, self._numbers(shape)), f"{name}.apart")
        return self._apply("Transpose", (apart,), name, {"perm": list(order)})

    def _apply(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str | Sequence[str],
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        from onnx import helper

        outputs = [output] if isinstance(output, str) else list(output)
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **(attributes or {})))
        return outputs[0]

    def _named(self, weight: str) -> str:
        self.weights[weight] = None
        return weight

    def _numbers(self, values: Sequence[int]) -> str:
        return self._constant("_".join(map(str, values)), np.array(values, np.int64))

    def _real(self, value: float) -> str:
        return self._constant(repr(value), np.array(value, np.float32))

    def _constant(self, name: str, value: Array) -> str:
        from onnx import numpy_helper

        self._tensors.setdefault(f"constant.{name}", numpy_helper.from_array(value, f"constant.{name}"))
        return f"constant.{name}"

    def _input(self, name: str, shape: Sequence[int], dtype: int = FLOAT) -> str:
        self._inputs.append(_info(name, shape, dtype))
        return name

    def _output(self, name: str, shape: Sequence[int]) -> None:
        self._outputs.append(_info(name, shape, FLOAT))


def _info(name: str, shape: Sequence[int], dtype: int) -> onnx.ValueInfoProto:
    from onnx import helper

    return helper.make_tensor_value_info(name, dtype, list(shape))
