"""Every reader of strangers' bytes refuses what it cannot read by our own errors, also what once was wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.fuzz import CRASHES, attempt, campaign, run
from tests.security.fuzz_target import Target
from tests.security.fuzz_targets import scratch, targets

NAMES = (
    *("JSON", "manifest", "safetensors", "PEFT configuration", "MLX-LM configuration", "GGUF", "adapter package"),
    *("FlatTensor", "PTE", "relocation table", "MIL", "MIL blobs", "flattened package", "AIMET encodings"),
    *("YAML groups", "qnn_sim container", "ONNX adapter", "ONNX model", "genai configuration", "gptq weights"),
    *("awq weights", "bitsandbytes weights", "fp8 weights", "compressed-tensors weights", "quantization settings"),
    *("tokenizer", "GGUF base", "model configuration", "fleet index", "records", "qnn_sim context", "qnn_sim section"),
    "sealed adapter package",
)
EXECUTIONS = 150


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Target]]:
    with scratch() as folder:
        yield targets(Path(folder))


def test_every_target_is_run(found: dict[str, Target]) -> None:
    assert set(found) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_damages_begin_with_is_read(found: dict[str, Target], name: str) -> None:
    assert {attempt(found[name], seed) for seed in found[name].seeds} == {"read"}


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes_are_refused_or_read(found: dict[str, Target], name: str) -> None:
    tally = run(found[name], EXECUTIONS, random.Random(name))
    assert tally.wrong == []
    assert tally.refused


@pytest.mark.parametrize("path", sorted(CRASHES.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_was_wrong_is_refused_or_read(found: dict[str, Target], path: Path) -> None:
    assert attempt(found[path.parent.name], path.read_bytes()) in ("read", "refused")


def test_readers_take_turns_until_all_damages_are_tried(found: dict[str, Target]) -> None:
    quick = {name: found[name] for name in ("JSON", "MIL")}
    tallies = campaign(quick, 30, deadline=math.inf)
    assert {name: tally.executions for name, tally in tallies.items()} == {"JSON": 15, "MIL": 15}


def test_a_campaign_ends_at_its_deadline(found: dict[str, Target]) -> None:
    assert campaign({"JSON": found["JSON"]}, 10, deadline=-math.inf)["JSON"].executions == 0
