"""Qualcomm's own compiler and Genie beside the simulator, where they are installed; and what they are given."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from lora_core_qnn_sim.handover.from_bundle import handover_from_bundle
from lora_core_qnn_sim.handover.stored import StoredAdapters
from lora_core_qnn_sim.vendor import checking, libraries
from lora_core_qnn_sim.vendor.asking import ask
from lora_core_qnn_sim.vendor.checking import Report, check_handover
from lora_core_qnn_sim.vendor.compiling import Comparison, Compiled, Difference, compile_trial
from lora_core_qnn_sim.vendor.dialog import ANSWER, Dialogue, Reply, dialogue
from lora_core_qnn_sim.vendor.libraries import NOT_INSTALLED, VendorLibraries
from lora_core_qnn_sim.vendor.socs import DEFAULT_SOC, SOCS
from lora_core_qnn_sim.vendor.trials import Trial, adapter_trials
from lora_core_qnn_sim.vendor.verdict import Verdict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lora_core.bundle.bundle import Bundle
from lora_core.events import ignore
from lora_core.testing.families import write_tiny_family
from plugins.qnn_sim.tests import tiny

NAMES = ("a1", "a2")
SOC = SOCS[DEFAULT_SOC]
INSTALLED = VendorLibraries.find() is not None
ROUNDED_AGAIN = {"w8a16": 64, "w8a8": 12}
"""In steps of the policy's activations: some tensors of a layer are rounded in the model and exact in the simulator."""
EMULATED = {"w8a16": 65536 // 16, "w8a8": 16}
"""The processor's own softmax and its sums over products of 16 bits are coarser than exact arithmetic."""
CLOSE = 65536 // 64
"""Two logits may be as close as the processor is exact; a token of another adapter is further away."""
ACTIVATIONS = {"w8a16": 16, "w8a8": 8}
LAST = f"layers.{tiny.LAYERS - 1}.mlp_add.output"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, model: Any) -> dict[str, StoredAdapters]:
    found = {}
    for policy in ("w8a16", "w8a8"):
        adapters = [
            tiny.adapter(name, model.summary, seed=seed, targets=("q_proj", "v_proj", "down_proj"))
            for seed, name in enumerate(NAMES)
        ]
        job = tiny.make_job(model, adapters, policy=policy, rotate=False, split_outliers=False)
        found[policy] = StoredAdapters.read(tiny.export(job, tmp_path_factory.mktemp(policy) / "out"))
    return found


@pytest.fixture(scope="module")
def with_tokenizer(stored: dict[str, StoredAdapters]) -> Bundle:
    bundle = stored["w8a16"].bundle
    (bundle.path / "tokenizer").mkdir()
    words = {f"w{index}": index for index in range(tiny.VOCAB)}
    Tokenizer(WordLevel(words, unk_token="w0")).save(str(bundle.path / "tokenizer" / "tokenizer.json"))
    return bundle


@pytest.fixture(scope="module", params=["w8a16", "w8a8"])
def policy(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["A and B as inputs", "hot switch by alpha"])
def trial(request: Any, policy: str, stored: dict[str, StoredAdapters]) -> Trial:
    return next(made for made in adapter_trials(stored[policy], NAMES, tiny.LAYERS) if made.name == request.param)


def test_the_quantized_model_gives_the_simulators_integers_for_each_adapter(policy: str, trial: Trial) -> None:
    assert_simulated(policy, trial)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma", {}),
        ("gemma2", {"sliding_window": 32}),
        ("phi3", {"rope_scaling": None, "partial_rotary_factor": 0.75}),
        ("smollm3", {}),
        ("granite", {}),
        ("olmo2", {}),
    ],
)
def test_the_quantized_model_of_other_families_gives_the_simulators_integers(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    model = tiny.open_model(write_tiny_family(tmp_path / "model", family, **changes))
    adapter = tiny.adapter("a1", model.summary, seed=1, targets=("q_proj", "v_proj", "qkv_proj", "down_proj"))
    job = tiny.make_job(model, [adapter], rotate=False, split_outliers=False)
    stored = StoredAdapters.read(tiny.export(job, tmp_path / "out"))
    assert_simulated("w8a16", next(iter(adapter_trials(stored, ("a1",), 2))))


def assert_simulated(policy: str, trial: Trial) -> None:
    onnx.checker.check_model(trial.model)
    options = onnxruntime.SessionOptions()
    # As it is written: fused operators round elsewhere.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(trial.model, options, providers=["CPUExecutionProvider"])
    for run in trial.runs:
        names = list(run.expected)
        for name, made in zip(names, session.run(names, dict(run.given)), strict=True):
            assert steps(policy, made, run.expected[name]) <= ROUNDED_AGAIN[policy], (run.adapter, name)


def test_adapters_are_further_apart_than_the_model_from_the_simulator(policy: str, trial: Trial) -> None:
    one, other = (run.expected[LAST] for run in trial.runs)
    assert steps(policy, one, other) > 2 * EMULATED[policy]


def steps(policy: str, one: Any, other: Any) -> float:
    """Return how far integers are apart at most, in steps of a grid of the policy's activations."""
    finer = 8 * one.itemsize - ACTIVATIONS[policy]
    return float(np.abs(one.astype(np.int64) - other.astype(np.int64)).max()) / 2**finer


@pytest.mark.parametrize(("policy_name", "index"), [("w8a16", 0), ("w8a8", 1)])
def test_the_vendors_compiler_takes_the_model_and_emulates_the_simulator(
    stored: dict[str, StoredAdapters], policy_name: str, index: int
) -> None:
    trial = list(adapter_trials(stored[policy_name], NAMES, tiny.LAYERS))[index]
    made = compile_trial(trial, SOC)
    if not INSTALLED:
        assert (made.verdict.outcome, made.verdict.detail) == ("unchecked", NOT_INSTALLED)
        return
    assert made.verdict.outcome == "accepted", made.verdict
    assert made.context is not None
    assert set(made.context.inputs) == set(trial.runs[0].given)
    assert set(made.differences) == set(NAMES)
    for difference in (each for found in made.differences.values() for each in found):
        assert difference.largest / 2 ** (difference.bits - ACTIVATIONS[policy_name]) <= EMULATED[policy_name]


def test_genie_answers_what_the_simulator_would_as_the_base_and_as_each_adapter(
    stored: dict[str, StoredAdapters], with_tokenizer: Bundle
) -> None:
    tokenizer = with_tokenizer.path / "tokenizer" / "tokenizer.json"
    held = dialogue(stored["w8a16"], NAMES, tokenizer, tiny.LAYERS, SOC)
    if not INSTALLED:
        assert (held.verdict.outcome, held.verdict.detail) == ("unchecked", NOT_INSTALLED)
        return
    assert held.verdict.outcome == "accepted", held.verdict
    assert [reply.who for reply in held.replies] == ["the base", *NAMES]
    assert len({reply.tokens for reply in held.replies}) == 3
    assert all(len(reply.tokens) == ANSWER and max(reply.below) <= CLOSE for reply in held.replies)
    assert held.tensors == len(("attention_mask", "cos", "sin", "alpha", "ids", "logits")) + 4 * tiny.LAYERS
    assert held.otherwise == ()


def test_a_check_without_the_vendors_libraries_names_what_is_not_installed(
    tmp_path: Path, with_tokenizer: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VendorLibraries, "find", lambda: None)
    report = check_handover(with_tokenizer, tmp_path, SOC, 1, ignore)
    assert report == Report(lines=(f"genie_config.json: unchecked: {NOT_INSTALLED}",), refusals=(), asked=False)


def test_a_check_says_what_came_of_every_question_and_all_that_was_refused(
    tmp_path: Path, with_tokenizer: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    took, refused = (Verdict(outcome=outcome, detail="theirs") for outcome in ("accepted", "refused"))
    far = Difference(output="stream", bits=16, largest=7, mean=0.5)
    context = Compiled(tools="v1", graph="llm", size=9, inputs=("a",), outputs=("b", "c"))
    answers = iter([
        Comparison(name="first", verdict=took, context=context, differences={"a1": (far,)}),
        Comparison(name="second", verdict=refused),
    ])  # fmt: skip
    monkeypatch.setattr(VendorLibraries, "find", lambda: VendorLibraries(directory=tmp_path, version="0"))
    monkeypatch.setattr(checking, "check_genie", lambda _: took)
    monkeypatch.setattr(checking, "compile_trial", lambda _trial, _soc: next(answers))
    reply = Reply(who="the base", tokens=(5, 6), below=(0, 3))
    held = Dialogue(verdict=took, replies=(reply,), tensors=14, otherwise=("logits",))
    monkeypatch.setattr(checking, "dialogue", lambda *_: held)
    report = check_handover(with_tokenizer, tmp_path, SOC, 1, ignore)
    assert report.lines == (
        "genie_config.json: accepted: theirs",
        "first: accepted: theirs\n"
        "  context binary: 9 bytes, made by v1, 1 inputs, 2 outputs\n"
        "  a1, stream: at most 7, on average 0.50 of 65536 steps from the simulator",
        "second: refused: theirs",
        "a dialog: accepted: theirs\n"
        "  context binary: 14 inputs and outputs, with the bundle's encodings but for logits\n"
        "  the base: Genie answers [5, 6], which are [0, 3] steps below the simulator's best logits",
    )
    assert [problem.what for problem in report.refusals] == [
        "Qualcomm's libraries do not take hot switch by alpha: theirs"
    ]


def test_libraries_whose_version_nobody_tells_are_asked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untold(distribution: str) -> str:
        raise PackageNotFoundError(distribution)

    package = tmp_path / "onnxruntime_qnn"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(libraries, "version", untold)
    found = VendorLibraries.find()
    assert found == VendorLibraries(directory=package, version="of unknown version")


def test_a_call_that_brings_its_process_down_is_a_refusal_that_says_so(tmp_path: Path) -> None:
    script = tmp_path / "falls.py"
    script.write_text("import os\nprint('so far', flush=True)\nos.abort()\n")
    verdict, _ = ask(VendorLibraries(directory=tmp_path, version="0"), str(script), [], seconds=60)
    assert verdict.outcome == "refused"
    assert verdict.detail == "onnxruntime-qnn 0 ended with code -6 and says: so far"


def test_a_call_that_takes_too_long_says_nothing_about_its_input(tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text("import threading\nthreading.Event().wait()\n")
    verdict, _ = ask(VendorLibraries(directory=tmp_path, version="0"), str(script), [], seconds=0)
    assert (verdict.outcome, verdict.detail) == ("unchecked", "onnxruntime-qnn 0 did not answer in 0 seconds")


def test_what_a_model_is_compiled_into_can_be_repeated_byte_for_byte(stored: dict[str, StoredAdapters]) -> None:
    first, again = (next(adapter_trials(stored["w8a16"], NAMES, 1)).model for _ in range(2))
    assert first == again


def test_genie_is_told_how_to_rotate(tmp_path: Path, with_tokenizer: Bundle) -> None:
    handover_from_bundle(with_tokenizer, tmp_path)
    model = json.loads((tmp_path / "genie_config.json").read_text())["dialog"]["engine"]["model"]
    assert model["positional-encoding"] == {"type": "rope", "rope-dim": 4, "rope-theta": 10000.0}
