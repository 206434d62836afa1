"""SmolLM2 with three real adapters on ONNX Runtime and on onnxruntime-genai: transformers' and peft's texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_core
from tests.full.reference import Reference
from tests.full.test_smollm2_xnnpack import NEW_TOKENS

pytestmark = pytest.mark.full
PROMPTS = ("What is a clock?", "Name three colours.")
ADAPTERS = ("json", "pirate", "shout")
PROGRAMS = (None, *ADAPTERS)
GENAI = """
import json, sys
import numpy as np
import onnxruntime_genai as og

bundle, asked, length = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = og.Model(bundle)
adapters = og.Adapters(model)
texts = []
for name, prompt in asked:
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + length)
    generator = og.Generator(model, params)
    if name:
        adapters.load(f"{bundle}/adapters/{name}.onnx_adapter", name)
        generator.set_active_adapter(adapters, name)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    texts.append([int(token) for token in generator.get_sequence(0)][len(prompt):])
print(json.dumps([texts, og.Tokenizer(f"{bundle}/tokenizer").decode(texts[0])]))
"""


@pytest.fixture(scope="module")
def bundle(smollm2_dir: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export with one adapter, and add the others."""
    out = tmp_path_factory.mktemp("smollm2") / "bundle"
    given = {name: examples / name for name in ADAPTERS}
    options = {"max_context_len": 256}
    lora_core.export(smollm2_dir, adapters={"pirate": given.pop("pirate")}, backend="onnx", out=out, options=options)
    lora_core.add(out, given)
    return out


@pytest.fixture(scope="module")
def reference(smollm2_dir: Path, examples: Path) -> Reference:
    return Reference.of(smollm2_dir, {name: examples / name for name in ADAPTERS})


@pytest.fixture(scope="module")
def report(bundle: Path) -> dict[str, Any]:
    """What `lora-core run` reports, in a process of its own."""
    chosen = [word for name in PROGRAMS for word in ("--adapter", name or "base")]
    asked = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    command = [Path(sys.executable).with_name("lora-core"), "run", bundle, *chosen, *asked, "--json", "--quiet"]
    arguments = [*map(str, command), "--max-new-tokens", str(NEW_TOKENS)]
    found: dict[str, Any] = json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout)
    return found


def test_every_text_is_that_of_transformers_and_peft(report: dict[str, Any], reference: Reference) -> None:
    answers = {(answer["adapter"], answer["prompt"]): answer["tokens"] for answer in report["answers"]}
    assert set(answers) == {(name, prompt) for name in PROGRAMS for prompt in PROMPTS}
    departures = {key: reference.departures(*key, tokens, NEW_TOKENS) for key, tokens in answers.items()}
    assert {key: found for key, found in departures.items() if found} == {}


def test_onnxruntime_genai_answers_alike(bundle: Path, reference: Reference) -> None:
    prompt = PROMPTS[0]
    asked = [(name, reference.prompted(prompt)) for name in PROGRAMS]
    arguments = [sys.executable, "-c", GENAI, str(bundle), json.dumps(asked), str(NEW_TOKENS)]
    quiet = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run(arguments, check=True, capture_output=True, text=True, env=quiet)
    texts, words = json.loads(ran.stdout.splitlines()[-1])
    assert words.strip().startswith("A clock is"), "the base's answer, by the tokenizer of onnxruntime-genai"
    found = dict(zip(PROGRAMS, texts, strict=True))
    departures = {name: reference.departures(name, prompt, text, NEW_TOKENS) for name, text in found.items()}
    assert {name: places for name, places in departures.items() if places} == {}


def test_three_adapters_add_their_own_memory(bundle: Path, report: dict[str, Any]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    stored = sum(item["size"] for item in manifest["artifacts"] if item["adapter"])
    loads = {load["adapter"]: load["anonymous"] for load in report["loads"]}
    assert list(loads) == [None, *ADAPTERS]
    assert loads[ADAPTERS[-1]] - loads[None] <= 1.5 * stored
