"""The main job on the real model: what is exported answers like transformers and peft, and the base is held once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import lora_core
from tests.full.reference import Reference

pytestmark = pytest.mark.full
PROMPTS = ("What is the capital of Italy?", "What is a clock?", "How do I boil an egg?")
NEW_TOKENS = 24
ADAPTERS = ("pirate", "shout")
PROGRAMS = (None, "pirate", "shout", "twin")


@pytest.fixture(scope="session")
def bundle(smollm2_dir: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export with two adapters in full, then link a third under another name."""
    out = tmp_path_factory.mktemp("smollm2") / "bundle"
    given = {name: str(examples / name) for name in ADAPTERS}
    options = {"max_context_len": 256, "max_seq_len": 128}
    lora_core.export(str(smollm2_dir), adapters=given, backend="xnnpack", out=out, options=options)
    lora_core.add(out, {"twin": str(examples / "pirate")})
    return out


@pytest.fixture(scope="session")
def reference(smollm2_dir: Path, examples: Path) -> Reference:
    return Reference.of(smollm2_dir, {name: examples / name for name in ADAPTERS})


def run(
    bundle: Path,
    weight_cache: str,
    *adapters: str,
    packed: Path | None = None,
    prompts: Sequence[str] = PROMPTS,
    new_tokens: int = NEW_TOKENS,
) -> dict[str, Any]:
    """Ask every prompt in a process of its own, and return the run's report."""
    chosen = [word for name in adapters for word in ("--adapter", name)]
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    command = [Path(sys.executable).with_name("lora-core"), "run", bundle, *chosen, *asked, "--json", "--quiet"]
    arguments = [*map(str, command), "--max-new-tokens", str(new_tokens), "--weight-cache", weight_cache]
    arguments += ["--packed-cache", str(packed or "off")]
    report: dict[str, Any] = json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout)
    return report


def anonymous_growth(report: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of anonymous memory that each load added."""
    levels = [report["memory_before"]["anonymous"], *(load["anonymous"] for load in report["loads"])]
    names = [load["adapter"] or "base" for load in report["loads"]]
    return {name: after - before for name, before, after in zip(names, levels, levels[1:], strict=False)}


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


@pytest.fixture(scope="session")
def shared(bundle: Path, packed: Path) -> dict[str, Any]:
    """What a run of all programs tells, which packs the base, and proves the file when it ends."""
    return run(bundle, "on", "base", "pirate", "shout", "twin", packed=packed)


def test_every_program_answers_like_transformers_and_peft(shared: dict[str, Any], reference: Reference) -> None:
    same_as = {None: None, "pirate": "pirate", "shout": "shout", "twin": "pirate"}
    answers = {(answer["adapter"], answer["prompt"]): answer["tokens"] for answer in shared["answers"]}
    assert set(answers) == {(name, prompt) for name in PROGRAMS for prompt in PROMPTS}
    departures = {
        (name, prompt): reference.departures(same_as[name], prompt, tokens, NEW_TOKENS)
        for (name, prompt), tokens in answers.items()
        if name != "twin" or tokens != answers["pirate", prompt]
    }
    assert {key: found for key, found in departures.items() if found} == {}


def test_an_adapter_adds_its_own_memory_and_without_the_cache_the_base_again(
    bundle: Path, shared: dict[str, Any], packed: Path
) -> None:
    loading = partial(run, prompts=PROMPTS[:1], new_tokens=1)  # memory is told when a program is loaded
    assert shared["facts"]["packed_cache"].startswith("written")
    again = loading(bundle, "on", "base", *ADAPTERS, packed=packed)
    assert again["facts"]["packed_cache"].startswith("proven")
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    planned = manifest["detail"]["planned_memory"]["template/0"]["forward"]
    own = {name: sum(item["size"] for item in manifest["artifacts"] if item["adapter"] == name) for name in ADAPTERS}
    foundation = next(item["size"] for item in manifest["artifacts"] if item["role"] == "foundation")
    growth = anonymous_growth(again)
    assert {name: growth[name] for name in ADAPTERS if growth[name] > planned + 1.5 * own[name]} == {}
    unshared = anonymous_growth(loading(bundle, "off", "base", "pirate"))
    # The embedding is read where it lies; all linear layers are packed anew.
    assert unshared["pirate"] > 0.7 * foundation


def test_the_stock_runner_of_executorch_runs_the_base_and_an_embedded_adapter(
    bundle: Path, tmp_path: Path, shared: dict[str, Any]
) -> None:
    from lora_core_xnnpack.files.joining import join_program

    embedded = tmp_path / "embedded.pte"
    with embedded.open("wb") as file:
        file.writelines(join_program(bundle / "pirate.pte", [bundle / "pirate.ptd"]))
    script, data = Path(__file__).with_name("stock_runner.py"), bundle / "foundation.ptd"
    arguments = [script, bundle / "tokenizer/tokenizer.json", data, PROMPTS[0], bundle / "base.pte", embedded]
    result = subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True, text=True)
    found = dict(zip((None, "pirate"), json.loads(result.stdout.splitlines()[-1]), strict=True))
    answers = {answer["adapter"]: answer["text"] for answer in shared["answers"] if answer["prompt"] == PROMPTS[0]}
    # It prints the token that ends a text.
    assert {name: text for name, text in found.items() if not text.strip().startswith(answers[name].strip()[:40])} == {}
