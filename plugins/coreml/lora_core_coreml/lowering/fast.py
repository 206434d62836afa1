"""Lower to CoreML faster, without changing one byte of what comes out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.fast_lowering import PATCHES as GENERAL_PATCHES
from lora_core.fast_lowering import PROVEN_VERSIONS as GENERAL_VERSIONS
from lora_core.fast_lowering import FastLowering, patched
from lora_core.fast_lowering.patching import Patches

PROVEN_VERSIONS: Mapping[str, str] = {**GENERAL_VERSIONS, "coremltools": "9.0"}
_PIECE = 1 << 20  # values that are looked at together


def validate_at_the_ends(patches: Patches) -> None:
    """Do not validate the program after each of some hundred passes.

    coremltools 9.0 (`pass_pipeline.py`) walks over all operations, and back from each to what it takes, to find that a
    pass left them as they should be; before the program is written and afterwards it does so again (`load.py`). It
    also prints the program for a message that nobody gets. Drop when it does so on demand.
    """
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    apply, validate, text = PassPipelineManager.apply_pipeline, Program.validate, Program.__str__
    within = False

    def apply_alone(prog: Any, pass_pipeline: Any) -> Any:
        nonlocal within
        within, before = True, within
        try:
            return apply(prog, pass_pipeline)
        finally:
            within = before

    def validate_outside(self: Any, check_essential_scope: bool | None = False) -> None:
        if not within:
            validate(self, check_essential_scope)

    def silent() -> bool:
        return within and not logging.getLogger("coremltools").isEnabledFor(logging.DEBUG)

    patches.replace(PassPipelineManager, "apply_pipeline", staticmethod(apply_alone))
    patches.replace(Program, "validate", validate_outside)
    patches.replace(
        Program, "__str__", lambda self, print_attr=False: "Program" if silent() else text(self, print_attr)
    )


def propagate_once(patches: Patches) -> None:
    """Find what each value must not be replaced for without asking each constant what it takes.

    coremltools 9.0 (`block.py`) does so for all operations of a block whenever a pass is done with it. Drop when it
    looks at what a pass changed.
    """
    from coremltools.converters.mil.mil import Block

    def propagate(self: Any) -> None:
        for op in self.operations:
            for block in op.blocks:
                propagate(block)
            if op.outputs is None:
                continue
            found = _upstream(op)
            for output in op.outputs:
                output.nonreplaceable_vars_upstream = {output} if found is None else set(found)

    patches.replace(Block, "_propagate_nonreplaceable_vars", propagate)


def _upstream(op: Any) -> set[Any] | None:
    """Return what outputs of `op` have upstream that must not be replaced (`var.py`); None for themselves."""
    kind = op.op_type
    if kind.startswith("constexpr_"):
        return None
    if kind in ("shape", "const"):
        return set()
    found: set[Any] = set()
    for given in op.inputs.values():
        for value in given if isinstance(given, list | tuple) else (given,):
            if value.nonreplaceable_vars_upstream:
                found |= value.nonreplaceable_vars_upstream
    return found


def tell_nobody(patches: Patches) -> None:
    """Do not print the program for a message that nobody gets, nor look for the callers of each partitioner.

    ExecuTorch 1.5.1 formats the program, code and all, before it logs it (`coreml_preprocess.py`), and reads the source
    of every caller to see whether to warn of an old way to lower, which is not ours (`coreml_partitioner.py`). Drop
    when it logs lazily, and asks for the names of its callers alone.
    """
    from executorch.backends.apple.coreml.compiler import coreml_preprocess
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from torch.export import ExportedProgram

    logger, text = coreml_preprocess.logger, ExportedProgram.__str__

    def short(self: Any) -> str:
        return str(text(self)) if logger.isEnabledFor(logging.INFO) else "ExportedProgram"

    patches.replace(ExportedProgram, "__str__", short)
    patches.replace(CoreMLPartitioner, "_check_if_called_from_to_backend", lambda _self: False)


def look_for_overflow_in_pieces(patches: Patches) -> None:
    """Tell whether a constant fits into float16 without indices of all its values, 24 bytes for each.

    coremltools 9.0 (`passes/defs/quantization.py`) does so for each operation that takes the constant; for an output
    head it was half of what an export held. Drop when it masks values in place of gathering them.
    """
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    def overflows(op: Any) -> bool:
        given = (each if isinstance(each, list | tuple) else (each,) for each in op.inputs.values())
        return any(
            var.op is not None
            and var.op.op_type == "const"
            and var.is_tensor_or_scalar_of(dtype="fp32")
            and _overflows_float16(np.atleast_1d(var.op.val.val))
            for each in given
            for var in each
        )

    patches.replace(FP16ComputePrecision, "fp16_overflow", staticmethod(overflows))


def _overflows_float16(values: npt.NDArray[Any]) -> bool:
    """Say whether a number is beyond float16; 1e38 and more count as infinite, which float16 has."""
    step = max(1, _PIECE // max(1, values[:1].size))
    for start in range(0, len(values), step):
        sizes = np.abs(values[start : start + step])
        if sizes.max(initial=0.0, where=sizes < 1e38) > np.finfo(np.float16).max:
            return True
    return False


def describe_types_once(patches: Patches) -> None:
    """Say what a type is without describing it anew, which a tensor's is by what it is of and by each of its sizes.

    coremltools 9.0 (`types/type_mapping.py`) asks whether types are tensors, texts or tuples several times for every
    value. Its types are made once each. Drop when it keeps what it says.
    """
    from coremltools.converters.mil.mil.types import type_mapping

    describe, known = type_mapping.get_type_info, dict[type, Any]()

    def described(kind: Any) -> Any:
        if not isinstance(kind, type):
            return describe(kind)
        if kind not in known:
            known[kind] = describe(kind)
        return known[kind]

    patches.replace(type_mapping, "get_type_info", described)


PATCHES: Mapping[str, Callable[[Patches], None]] = {
    **GENERAL_PATCHES,
    "messages": tell_nobody,
    "overflow": look_for_overflow_in_pieces,
    "validation": validate_at_the_ends,
    "replaceability": propagate_once,
    "types": describe_types_once,
}


@contextlib.contextmanager
def fast_lowering() -> Iterator[FastLowering]:
    """Make torch.export, ExecuTorch's and coremltools' passes cheaper inside the block; on other versions than
    `PROVEN_VERSIONS` nothing is patched.
    """
    with patched(PATCHES, PROVEN_VERSIONS) as state:
        yield state


def decomposed(program: Any, partitioner: Any) -> Any:
    """Return `program` made functional and decomposed as ExecuTorch does it for `partitioner`, in one tracing.

    ExecuTorch 1.5.1 (`_gen_edge_manager_for_partitioners`) traces twice: then it finds nothing to do. As if it called,
    torch 2.13.0 (`_unlift.py`) must put no check of the inputs into the graph.
    """
    from executorch.exir.tracer import _default_decomposition_table
    from torch.export import _unlift

    table = _default_decomposition_table()
    kept, _ = partitioner.ops_to_not_decompose(program)
    for operator in kept:
        table.pop(operator, None)
    with contextlib.ExitStack() as stack:
        Patches(stack).replace(_unlift, "_ok_to_generate_guards_fn", lambda: False)
        return program.run_decompositions(table)
