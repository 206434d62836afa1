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
from tests.full.test_smollm2_xnnpack import NEW_TOKENS, Greedy

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
def reference(smollm2_dir: Path, examples: Path) -> dict[tuple[str | None, str], tuple[list[int], Greedy]]:
    """Prompts as tokens with the greedy texts of transformers and peft, for the base and each adapter."""
    import peft
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_dir)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, examples / "json", adapter_name="json")
    for name in ADAPTERS[1:]:
        model.load_adapter(examples / name, adapter_name=name)
    texts = {}
    for name in PROGRAMS:
        if name is not None:
            model.set_adapter(name)
        for prompt in PROMPTS:
            inputs = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            options: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
            with torch.no_grad():
                if name is None:
                    with model.disable_adapter():
                        out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options)
                else:
                    out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options)
            asked = inputs["input_ids"][0].tolist()
            greedy = Greedy(
                tokens=out.sequences[0, len(asked) :].tolist(), logits=[row[0].numpy() for row in out.logits]
            )
            texts[name, prompt] = (asked, greedy)
    return texts


@pytest.fixture(scope="module")
def report(bundle: Path) -> dict[str, Any]:
    """What `lora-core run` reports, in a process of its own."""
    chosen = [word for name in PROGRAMS for word in ("--adapter", name or "base")]
    asked = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    command = [Path(sys.executable).with_name("lora-core"), "run", bundle, *chosen, *asked, "--json", "--quiet"]
    arguments = [*map(str, command), "--max-new-tokens", str(NEW_TOKENS)]
    found: dict[str, Any] = json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout)
    return found


def test_every_text_is_that_of_transformers_and_peft(
    report: dict[str, Any], reference: dict[tuple[str | None, str], tuple[list[int], Greedy]]
) -> None:
    answers = {(answer["adapter"], answer["prompt"]): answer["tokens"] for answer in report["answers"]}
    differing = {
        key: (answers[key], text.tokens) for key, (_, text) in reference.items() if not text.allows(answers[key])
    }
    assert differing == {}


def test_onnxruntime_genai_answers_alike(
    bundle: Path, reference: dict[tuple[str | None, str], tuple[list[int], Greedy]]
) -> None:
    asked = [(name, tokens) for (name, prompt), (tokens, _) in reference.items() if prompt == PROMPTS[0]]
    arguments = [sys.executable, "-c", GENAI, str(bundle), json.dumps(asked), str(NEW_TOKENS)]
    quiet = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run(arguments, check=True, capture_output=True, text=True, env=quiet)
    texts, words = json.loads(ran.stdout.splitlines()[-1])
    assert words.strip().startswith("A clock is"), "the base's answer, by the tokenizer of onnxruntime-genai"
    for (name, _), found in zip(asked, texts, strict=True):
        expected = reference[name, PROMPTS[0]][1].tokens
        assert found == expected[: len(found)], name
        assert len(found) == len(expected), name


def test_three_adapters_add_their_own_memory(bundle: Path, report: dict[str, Any]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    stored = sum(item["size"] for item in manifest["artifacts"] if item["adapter"])
    loads = {load["adapter"]: load["anonymous"] for load in report["loads"]}
    assert list(loads) == [None, *ADAPTERS]
    assert loads[ADAPTERS[-1]] - loads[None] <= 1.5 * stored
