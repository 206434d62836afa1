"""Trials compiled by the vendor's libraries, executed in emulation, and compared with the simulator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np

from lora_core.temporary import temporary_directory
from lora_core_qnn_sim.vendor import provider_process
from lora_core_qnn_sim.vendor.asking import ask
from lora_core_qnn_sim.vendor.libraries import NOT_INSTALLED, VendorLibraries
from lora_core_qnn_sim.vendor.socs import Soc
from lora_core_qnn_sim.vendor.trials import Trial, TrialRun
from lora_core_qnn_sim.vendor.verdict import Verdict

_SECONDS = 1800
MODEL, CONTEXT = "model.onnx", "context.onnx"


@attrs.frozen(kw_only=True)
class Difference:
    """How far an output is from the simulator's, in steps of its own grid."""

    output: str
    bits: int
    largest: int
    mean: float


@attrs.frozen(kw_only=True)
class Compiled:
    """A context binary as the file beside it describes it: version of the tools, bytes, names of inputs and outputs."""

    tools: str
    graph: str
    size: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Comparison:
    """What came of a trial; `differences` by adapter."""

    name: str
    verdict: Verdict
    context: Compiled | None = None
    differences: Mapping[str, tuple[Difference, ...]] = attrs.field(factory=dict)


def compile_trial(trial: Trial, soc: Soc) -> Comparison:
    """Have `trial` compiled for `soc` and executed."""
    with temporary_directory() as directory:
        verdict = compile_into(directory, trial.model, soc, trial.runs)
        if verdict.outcome != "accepted":
            return Comparison(name=trial.name, verdict=verdict)
        differences = {
            run.adapter: _differences(run, directory / f"made{index}.safetensors")
            for index, run in enumerate(trial.runs)
        }
        context = _inspect(directory / CONTEXT)
    return Comparison(name=trial.name, verdict=verdict, context=context, differences=differences)


def compile_into(directory: Path, model: bytes, soc: Soc, runs: tuple[TrialRun, ...] = ()) -> Verdict:
    """Have `model` compiled into `directory`, and executed for `runs`."""
    libraries = VendorLibraries.find()
    if libraries is None:
        return Verdict(outcome="unchecked", detail=NOT_INSTALLED)
    from safetensors.numpy import save_file

    (directory / MODEL).write_bytes(model)
    for index, run in enumerate(runs):
        given = {name: np.ascontiguousarray(array) for name, array in run.given.items()}
        save_file(given, directory / f"run{index}.safetensors")
    request = {"options": {"soc_model": str(soc.model), "htp_arch": str(soc.arch)}, "runs": len(runs)}
    (directory / "request.json").write_text(json.dumps(request), encoding="utf-8")
    return ask(libraries, provider_process.__file__, [str(directory)], seconds=_SECONDS)[0]


def context_binary(context: Path) -> Path:
    """Return the file of the context binary that `context` describes."""
    return context.parent / _attributes(context)["ep_cache_context"].decode()


def _inspect(context: Path) -> Compiled:
    # ONNX Runtime's EPContext design: one node, whose attributes say what lies where.
    import onnx

    graph, about = onnx.load(context, load_external_data=False).graph, _attributes(context)
    return Compiled(
        tools=about["ep_sdk_version"].decode(),
        graph=about["partition_name"].decode(),
        size=context_binary(context).stat().st_size,
        inputs=tuple(each.name for each in graph.input),
        outputs=tuple(each.name for each in graph.output),
    )


def _attributes(context: Path) -> dict[str, bytes]:
    import onnx

    (node,) = onnx.load(context, load_external_data=False).graph.node
    return {each.name: each.s for each in node.attribute}


def _differences(run: TrialRun, made: Path) -> tuple[Difference, ...]:
    from safetensors.numpy import load_file

    outputs = load_file(made)
    return tuple(_difference(name, expected, outputs[name]) for name, expected in run.expected.items())


def _difference(name: str, expected: np.ndarray, made: np.ndarray) -> Difference:
    steps = np.abs(made.astype(np.int64) - expected.astype(np.int64))
    return Difference(output=name, bits=8 * expected.dtype.itemsize, largest=int(steps.max()), mean=float(steps.mean()))
