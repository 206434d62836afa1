"""All that the vendor's libraries are asked about a hand-over, and what is said of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import attrs

from lora_core.bundle.bundle import Bundle
from lora_core.errors import Problem
from lora_core.events import Emit, stage
from lora_core_qnn_sim.handover import names
from lora_core_qnn_sim.handover.stored import StoredAdapters
from lora_core_qnn_sim.vendor.compiling import Comparison, compile_trial
from lora_core_qnn_sim.vendor.dialog import Dialogue, dialogue
from lora_core_qnn_sim.vendor.genie import check_genie
from lora_core_qnn_sim.vendor.libraries import VendorLibraries
from lora_core_qnn_sim.vendor.socs import Soc
from lora_core_qnn_sim.vendor.trials import adapter_trials
from lora_core_qnn_sim.vendor.verdict import Verdict

MOST = 3
"""How many adapters are compiled and executed; what holds for some holds for all of a context."""


@attrs.frozen(kw_only=True)
class Report:
    """What people are told, line by line, what was refused, and whether anybody was asked."""

    lines: tuple[str, ...]
    refusals: tuple[Problem, ...]
    asked: bool


def check_handover(bundle: Bundle, directory: Path, soc: Soc, layers: int, emit: Emit) -> Report:
    """Ask about the hand-over of `bundle` in `directory`, with its first `layers` layers compiled for `soc`."""
    config = check_genie(directory / names.GENIE)
    found = [(names.GENIE, config, f"{names.GENIE}: {config}")]
    asked = VendorLibraries.find() is not None
    if asked:
        found += _compiled(bundle, soc, layers, emit)
    refusals = tuple(
        Problem(what=f"Qualcomm's libraries do not take {what}: {verdict.detail}")
        for what, verdict, _ in found
        if verdict.outcome == "refused"
    )
    return Report(lines=tuple(line for _, _, line in found), refusals=refusals, asked=asked)


def _compiled(bundle: Bundle, soc: Soc, layers: int, emit: Emit) -> Iterator[tuple[str, Verdict, str]]:
    if importlib.util.find_spec("onnx") is None:
        verdict = Verdict(outcome="unchecked", detail="onnx is not installed: pip install lora-core-qnn-sim[handover]")
        yield names.MODEL, verdict, f"{names.MODEL}: {verdict}"
        return
    stored = StoredAdapters.read(bundle)
    layers = min(layers, stored.context.spec.dims.n_layers)
    chosen = sorted(stored.encodings)[:MOST]
    with stage(emit, "compile and execute adapters"):
        for trial in adapter_trials(stored, chosen, layers):
            made = compile_trial(trial, soc)
            yield trial.name, made.verdict, _told(made)
    with stage(emit, "hold a dialog"):
        tokenizer = bundle.path / names.TOKENIZER
        if tokenizer.is_file():
            held = dialogue(stored, chosen, tokenizer, layers, soc)
        else:
            held = Dialogue(verdict=Verdict(outcome="unchecked", detail="the bundle has no tokenizer"))
        yield "a dialog", held.verdict, _said(held)


def _told(made: Comparison) -> str:
    lines = [f"{made.name}: {made.verdict}"]
    if made.context is not None:
        context = made.context
        inputs, outputs = len(context.inputs), len(context.outputs)
        about = f"{context.size} bytes, made by {context.tools}, {inputs} inputs, {outputs} outputs"
        lines.append(f"  context binary: {about}")
    for adapter, differences in made.differences.items():
        for each in differences:
            apart = f"at most {each.largest}, on average {each.mean:.2f} of {1 << each.bits} steps"
            lines.append(f"  {adapter}, {each.output}: {apart} from the simulator")
    return "\n".join(lines)


def _said(held: Dialogue) -> str:
    lines = [f"a dialog: {held.verdict}"]
    if held.tensors:
        otherwise = f" but for {', '.join(held.otherwise)}" if held.otherwise else ""
        lines.append(f"  context binary: {held.tensors} inputs and outputs, with the bundle's encodings{otherwise}")
    for reply in held.replies:
        below = f"{list(reply.below)} steps below the simulator's best logits"
        lines.append(f"  {reply.who}: Genie answers {list(reply.tokens)}, which are {below}")
    return "\n".join(lines)
