"""Every mode end to end on real weights with the real adapters: SmolLM2 cut to two layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_core_qnn_sim.artifacts.container import read_container
from safetensors.numpy import load_file, save_file

import lora_core

LAYERS = 2
ADAPTERS = Path(__file__).resolve().parents[3] / "examples" / "adapters"
# All modes run on a tiny model too (test_session.py).
MODES: list[Any] = [
    {"quant_updatable": "none"},
    # In 16 bits `verify` holds it below, headers too.
    pytest.param({"quant_updatable": "adapter_only", "lora_bits": 8}, marks=pytest.mark.deep),
    pytest.param({"quant_updatable": "all"}, marks=pytest.mark.deep),
    pytest.param({"group": ("voice=pirate,shout",)}, marks=pytest.mark.deep),
    {"hot_switch": True},
]
# 2% of the smallest section of the whole model at rank 8 (q and v of 30 layers, int8): headers do not grow with layers.
OVERHEAD = 460_800 // 50
TOKENS = [1, 4093, 198, 1780, 314, 260, 3575, 282, 8031, 47, 2, 198]


@pytest.fixture(scope="module")
def cut(smollm2_cut: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    directory, adapters = tmp_path_factory.mktemp("adapters"), {}
    for name in ("json", "pirate", "shout"):
        adapters[name] = directory / name
        adapters[name].mkdir()
        tensors = load_file(ADAPTERS / name / "adapter_model.safetensors")
        kept = {key: array for key, array in tensors.items() if int(key.split("layers.")[1].split(".")[0]) < LAYERS}
        save_file(kept, adapters[name] / "adapter_model.safetensors")
        config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
        (adapters[name] / "adapter_config.json").write_text(json.dumps(config))
    return smollm2_cut(LAYERS), adapters


@pytest.mark.full
@pytest.mark.parametrize("options", MODES, ids=lambda options: "-".join(map(str, options.values())))
def test_real_adapters_run_and_differ_in_every_mode(
    tmp_path: Path, cut: tuple[Path, dict[str, Path]], options: dict[str, Any]
) -> None:
    model, adapters = cut
    lora_core.export(
        model,
        adapters=adapters,
        backend="qnn_sim",
        policy="w8a16",
        out=tmp_path / "bundle",
        options={"context_len": 32, "input_len": 16, **options},
    )
    with lora_core.open(tmp_path / "bundle") as session:
        logits = {name: session.step(name, TOKENS, 0) for name in (None, *adapters)}
        assert np.array_equal(session.step("shout", TOKENS, 0), logits["shout"])
    assert len({row.tobytes() for row in logits.values()}) == 4
    assert all(np.isfinite(row).all() for row in logits.values())
    assert all(each <= OVERHEAD for each in headers(tmp_path / "bundle"))


def headers(bundle: Path) -> list[int]:
    """Return what each section holds beside its tensors, in bytes."""
    sections = [read_container(path, "section") for path in (bundle / "sections").glob("*.bin")]
    return [section.size - section.payload for section in sections]


@pytest.mark.full
def test_verify_holds_a_bundle_with_an_added_adapter_against_full_precision(
    tmp_path: Path, cut: tuple[Path, dict[str, Path]]
) -> None:
    model, adapters = cut
    lora_core.export(
        model,
        adapters={"pirate": adapters["pirate"]},
        backend="qnn_sim",
        policy="w8a16",
        out=tmp_path / "bundle",
        options={"context_len": 64},
    )
    before = {path.name: path.read_bytes() for path in (tmp_path / "bundle").glob("*.bin")}
    lora_core.add(tmp_path / "bundle", adapters={"shout": adapters["shout"]})
    assert {path.name: path.read_bytes() for path in (tmp_path / "bundle").glob("*.bin")} == before
    sizes = headers(tmp_path / "bundle")
    assert len(sizes) == 3  # with that of no adapter
    assert max(sizes) <= OVERHEAD
    report = lora_core.verify(
        tmp_path / "bundle",
        model,
        adapters={name: adapters[name] for name in ("pirate", "shout")},
        prompts=["The sea is"],
        tokens=4,
        reference="eager",
    )
    assert report.passed, report.failures
    assert {numbers.method for numbers in report.methods} == {"forward", "pirate", "shout"}
