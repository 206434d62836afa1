"""The graph as a quantized ONNX model: integers wherever the simulator has them, in the form that compilers take.

Form: every quantized tensor is stored or computed in reals between `DequantizeLinear` and `QuantizeLinear` (ONNX
operators, opset 21 and newer for 16 bits), whose scales and zero points are the encodings. Inputs and outputs are
integers. The grids of tensors that the simulator does not round are derived here from those that it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.encodings.grid import Encoding, asymmetric, symmetric
from lora_core_qnn_sim.graph.nodes import Node, lora_weights, query_output
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.handover.decoder import FLOAT, GELU_CUBIC, GELU_LINEAR, DecoderModel
from lora_core_qnn_sim.handover.documents import ALPHA
from lora_core_qnn_sim.runtime import kernels
from lora_core_qnn_sim.runtime.weights import BaseWeights

Array = npt.NDArray[Any]
UINT8, INT8, UINT16, INT32 = 2, 3, 4, 6
"""Values of `onnx.TensorProto.DataType`."""
MASK = "attention_mask"
_MOVES = frozenset({"Reshape", "Transpose", "Split", "Slice", "Concat", "Gather"})
"""Operators that move values and leave them on their grid."""
_FINE = 16
"""Bits of tensors that the simulator does not round, and of whatever meets a tensor of so many bits."""
_SMALLEST_SHARE = _FINE * math.log(2)
"""How far below another a score must lie for its share to be less than a step of 16 bits."""


@attrs.frozen(kw_only=True, eq=False)
class QuantizedGraph:
    """What a quantized model is made of: the base, all encodings, and the integers of A and B; None: they are inputs.

    Integers of activations, A and B are stored unsigned, as `value - encoding.offset`.
    """

    spec: GraphSpec
    base: BaseWeights
    encodings: Mapping[str, Encoding]
    lora: Mapping[str, Array] | None = None
    head: bool = True

    def model(self) -> tuple[bytes, dict[str, Encoding]]:
        """Return the model, with its weights in it, and the grids of its inputs and outputs by name."""
        made = QuantizedDecoder(self)
        made.add_all()
        return made.serialized(), made.interface()


class QuantizedDecoder(DecoderModel):
    """The nodes of the graph with a grid for every tensor; what only moves values keeps the grid of its source."""

    opset, ir_version = 23, 11

    def __init__(self, graph: QuantizedGraph) -> None:
        super().__init__(graph.spec, head=graph.head)
        self._quantized = graph
        self._grids: dict[str, Encoding] = dict(graph.encodings)
        self._reals = 0
        self._grids |= {ALPHA: kernels.ALPHA, MASK: self._mask()}
        self._grids |= {f"position_ids_{part}": symmetric(1.0, _FINE) for part in ("cos", "sin")}
        for index in range(graph.spec.dims.n_layers):
            prefix = f"layers.{index}.self_attn"
            self._grids[f"past_key_{index}_in"] = graph.encodings[query_output(graph.spec.dims, index, "k")]
            self._grids[f"past_value_{index}_in"] = graph.encodings[f"{prefix}.v_proj.output"]
        if graph.lora is None:
            for name, shape in lora_weights(graph.spec).items():
                self._input(name, shape)

    def interface(self) -> dict[str, Encoding]:
        """Return the grids of inputs and outputs, by name."""
        names = [each.name for each in (*self._inputs, *self._outputs)]
        return {name: self._grids[name] for name in names if name in self._grids}

    def _add(self, node: Node) -> None:
        if node.op == "embed":
            self._embed(node)
        elif node.op == "linear":
            self._linear(node)
        else:
            super()._add(node)

    def _embed(self, node: Node) -> None:
        # Rows have scales of their own, and a table has one: that of what it gives, on which the simulator rounds.
        grid, table = self._grids[node.output], self._quantized.base.linears[node.weights["weight"]]
        scales = table.scales.astype(np.float64)[:, None] * self._dims.embedding_scale
        rows = kernels.saturate(table.values * (scales / grid.scale), grid)
        name = f"{node.output}.table"
        self._integers(name, rows, grid)
        flat = self._apply("Reshape", ("input_ids", self._numbers((-1,))), "input_ids.flat")
        self._apply("Gather", (name, flat), node.output)

    def _linear(self, node: Node) -> None:
        stored, source = self._quantized.base.linears[node.weights["weight"]], self._grids[node.inputs[0]]
        weight = self._channels(f"{node.output}.weight", stored.values, stored.scales)
        fine = self._is_fine((node.inputs[0], node.output))
        given = [self._real_of(node.inputs[0], fine=fine), weight]
        if "bias" in node.weights:
            scales = stored.scales.astype(np.float64) * (_fine(source) if fine else source).scale
            bias = np.rint(self._quantized.base.vector(node.weights["bias"]) / scales)
            given.append(self._channels(f"{node.output}.bias", bias.astype(np.int32), scales))
        self._onto_grid("Gemm", given, [node.output], {"transB": 1}, fine=fine)

    def _branch(self, node: Node) -> None:
        weight = node.weights["weight"]
        if self._quantized.lora is not None and weight not in self._tensors:
            self._integers(weight, self._quantized.lora[weight], self._grids[weight])
        super()._branch(node)

    def _norm(self, node: Node) -> None:
        out, (source,), dims = node.output, node.inputs, self._dims
        gains = self._quantized.base.vector(node.weights["weight"]) if node.weights else np.ones(dims.dim)
        grid = asymmetric(float(gains.min()), float(gains.max()), _FINE)
        self._integers(f"{out}.gains", grid.quantize(gains), grid)
        given, made = source, out
        if node.heads:
            given = self._apply("Reshape", (source, self._numbers((-1, node.heads, dims.head_dim))), f"{out}.apart")
            made = f"{out}.normed"
            self._grids[made] = self._grids[out]
        attributes = {"axis": -1, "epsilon": dims.norm_eps}
        self._apply("RMSNormalization", (given, f"{out}.gains"), made, attributes)
        if node.heads:
            self._apply("Reshape", (made, self._numbers((-1, node.heads * dims.head_dim))), out)

    def _apply(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str | Sequence[str],
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        outputs = [output] if isinstance(output, str) else list(output)
        if not any(name in self._grids for name in inputs):
            return super()._apply(operator, inputs, output, attributes)
        for name in outputs:
            if name not in self._grids:
                self._grids[name] = self._derived(operator, inputs, name)
        fine = operator not in _MOVES and self._is_fine((*inputs, *outputs))
        given = [self._real_of(name, fine=fine) for name in inputs]
        return self._onto_grid(operator, given, outputs, attributes, fine=fine)

    def _is_fine(self, tensors: Sequence[str]) -> bool:
        """Whether one of `tensors` has 16 bits: processors compute with operands of one width. A and B may differ."""
        return any(
            self._grids[name].bits == _FINE for name in tensors if name in self._grids and not self._updatable(name)
        )

    def _updatable(self, name: str) -> bool:
        return name.endswith((".lora_a.weight", ".lora_b.weight"))

    def _onto_grid(
        self,
        operator: str,
        given: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Any] | None,
        *,
        fine: bool,
    ) -> str:
        super()._apply(operator, given, [f"{name}.real" for name in outputs], attributes)
        for name in outputs:
            grid, made = self._grids[name], f"{name}.real"
            if fine and grid.bits < _FINE:
                self._grids[f"{name}.fine"] = _fine(grid)
                super()._apply("QuantizeLinear", (made, *self._parameters(_fine(grid))), f"{name}.fine")
                made = self._real_of(f"{name}.fine")
            super()._apply("QuantizeLinear", (made, *self._parameters(grid)), name)
        return outputs[0]

    def _real_of(self, name: str, *, fine: bool = False) -> str:
        """Return a tensor's reals, computed for one reader alone, as compilers want them."""
        if name not in self._grids:
            return name
        grid, source = self._grids[name], name
        if fine and grid.bits < _FINE and not self._updatable(name):
            source, grid = self._converted(name, _fine(grid)), _fine(grid)
        self._reals += 1
        return super()._apply("DequantizeLinear", (source, *self._parameters(grid)), f"{name}.real.{self._reals}")

    def _converted(self, name: str, grid: Encoding) -> str:
        """Return a tensor's integers on another grid."""
        converted = f"{name}.{grid.bits}bit"
        if converted not in self._grids:
            self._grids[converted] = grid
            super()._apply("QuantizeLinear", (self._real_of(name), *self._parameters(grid)), converted)
        return converted

    def _derived(self, operator: str, inputs: Sequence[str], name: str) -> Encoding:
        """Return a grid for a tensor that the simulator does not round."""
        source = self._grids[inputs[0]]
        stem = name
        for ending in (".first.turned", ".second.turned", ".mixed"):
            stem = stem.removesuffix(ending)
        if operator == "Tanh":
            return symmetric(1.0, _FINE)
        if name.endswith(".ratio"):
            wide = _fine(source)
            return attrs.evolve(wide, scale=wide.scale * self._grids[inputs[1]].maximum)
        if operator == "Sigmoid":
            return Encoding(bits=_FINE, scale=2.0**-_FINE, offset=0)
        if name.endswith((".cos", ".sin")) and operator == "Mul":
            return symmetric(max(-source.minimum, source.maximum), _FINE)
        if stem != name:
            return self._grids[stem]
        if name.endswith(".products"):
            scores = self._grids[f"{name.removesuffix('.mix.output.products')}.scores.output"]
            return attrs.evolve(scores, scale=scores.scale * self._dims.score_divisor)
        if name.endswith(".scaled"):
            wide = _fine(source)
            return attrs.evolve(wide, scale=wide.scale * self._dims.residual_scale)
        if ".gelu_tanh.output." in name:
            return self._of_gelu(name)
        if name.endswith(".masked"):
            return asymmetric(source.minimum + self._grids[MASK].minimum, source.maximum, _FINE)
        if name.endswith((".weighted", ".weighted.product")) and operator == "Mul":  # strengths go up to 2
            wide = _fine(source)
            return attrs.evolve(wide, scale=wide.scale * kernels.ALPHA_LIMIT)
        if operator in _MOVES:
            return source
        raise AssertionError(f"{name} has no grid")

    def _of_gelu(self, name: str) -> Encoding:
        """Return a grid for a step of GELU's approximation: as far as its source reaches."""
        output, _, step = name.rpartition(".")
        source = self._grids[output.replace(".gelu_tanh.", ".gate_proj.")]
        reach = max(-source.minimum, source.maximum)
        slope = GELU_LINEAR + GELU_CUBIC * reach**2
        if step == "argument":
            return symmetric(reach * slope, _FINE)
        return asymmetric(0.0, {"squares": reach**2, "cubic": GELU_CUBIC * reach**2, "slope": slope}[step], _FINE)

    def _mask(self) -> Encoding:
        """Return a grid whose least value takes any score below what has a share."""
        scores = [grid for name, grid in self._quantized.encodings.items() if name.endswith(".scores.output")]
        least = -max(grid.maximum - grid.minimum for grid in scores) - _SMALLEST_SHARE
        return asymmetric(least, 0.0, _FINE)

    def _channels(self, name: str, values: Array, scales: Array) -> str:
        """Store integers with a scale for each row, and return their reals."""
        from onnx import numpy_helper

        single = scales.astype(np.float32)
        for part, array in (("", values), (".scales", single), (".zeros", np.zeros(len(single), values.dtype))):
            self._tensors[f"{name}{part}"] = numpy_helper.from_array(np.ascontiguousarray(array), f"{name}{part}")
        given = (name, f"{name}.scales", f"{name}.zeros")
        return super()._apply("DequantizeLinear", given, f"{name}.real", {"axis": 0})

    def _integers(self, name: str, centred: Array, grid: Encoding) -> None:
        from onnx import numpy_helper

        self._grids[name] = grid
        self._tensors[name] = numpy_helper.from_array(unsigned(centred, grid), name)

    def _parameters(self, grid: Encoding) -> tuple[str, str]:
        zero = np.array(-grid.offset, dtype_of(grid))
        return (
            self._constant(f"scale.{grid.scale!r}", np.array(grid.scale, np.float32)),
            self._constant(f"zero.{grid.bits}.{-grid.offset}", zero),
        )

    def _real(self, value: float) -> str:
        name = f"constant.{value!r}"
        self._integers(name, np.array((1 << _FINE) - 1), asymmetric(0.0, value, _FINE))
        return name

    def _input(self, name: str, shape: Sequence[int], dtype: int = FLOAT) -> str:
        return super()._input(name, shape, self._element(name, dtype))

    def _output(self, name: str, shape: Sequence[int]) -> None:
        from onnx import helper

        self._outputs.append(helper.make_tensor_value_info(name, self._element(name, FLOAT), list(shape)))

    def _element(self, name: str, otherwise: int) -> int:
        if name not in self._grids:
            return otherwise
        return UINT8 if self._grids[name].bits <= 8 else UINT16


def _fine(grid: Encoding) -> Encoding:
    """Return the grid of 16 bits on which every value of `grid` lies."""
    steps = 1 << (_FINE - grid.bits)
    return attrs.evolve(grid, bits=_FINE, scale=grid.scale / steps, offset=grid.offset * steps)


def dtype_of(grid: Encoding) -> type[np.uint8] | type[np.uint16]:
    """Return the unsigned type that holds the integers of `grid`."""
    return np.uint8 if grid.bits <= 8 else np.uint16


def unsigned(centred: Array, grid: Encoding) -> Array:
    """Return centred integers as they are stored."""
    return np.ascontiguousarray(np.asarray(centred, np.int64) - grid.offset).astype(dtype_of(grid))
