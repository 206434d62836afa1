"""A thousand damaged sections are all refused, and none crashes or changes what is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_core_qnn_sim.errors import SimulatorError
from lora_core_qnn_sim.runtime.context import SimulatedContext

from plugins.qnn_sim.tests import tiny

KINDS = ("flip", "truncate", "extend", "rename", "foreign", "noise")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, five: Any) -> list[bytes]:
    """Sections of the same names for another base."""
    directory = tmp_path_factory.mktemp("foreign")
    other = tiny.open_model(tiny.write_checkpoint(directory / "model", rope_theta=500.0))
    bundle = tiny.export(tiny.make_job(other, five, group=("g1=a1,a2", "g2=a3,a4")), directory / "out")
    return [tiny.sections(bundle)[f"llm_{name}.bin"] for name in ("a1_weights", "a1_encodings", "a5")]


def _damage(kind: str, name: str, data: bytes, names: list[str], foreign: list[bytes], rng: Any) -> tuple[str, bytes]:
    changed = bytearray(data)
    if kind == "flip":
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
        # Two flips of one bit undo each other.
        if bytes(changed) == data:
            changed[0] ^= 1
    elif kind == "truncate":
        del changed[int(rng.integers(len(changed))) :]
    elif kind == "extend":
        changed += rng.bytes(int(rng.integers(1, 64)))
    elif kind == "rename":
        name = str(rng.choice([other for other in names if other != name]))
    elif kind == "foreign":
        index = int(rng.integers(3))
        return ("llm_a1_weights.bin", "llm_a1_encodings.bin", "llm_a5.bin")[index], foreign[index]
    else:
        changed = bytearray(rng.bytes(int(rng.integers(0, 4096))))
    return name, bytes(changed)


def test_a_thousand_damaged_sections_are_all_refused(tmp_path: Path, grouped: Any, foreign: list[bytes]) -> None:
    context = SimulatedContext.create(grouped.file("context.bin"), grouped.file("foundation.bin"))
    state = (context.encodings_id, context.applied, context.read_io_encodings())
    whole, rng = tiny.sections(grouped), np.random.default_rng(2024)
    names = sorted(whole)
    for number in range(1000):
        name = str(rng.choice(names))
        damaged, data = _damage(KINDS[number % len(KINDS)], name, whole[name], names, foreign, rng)
        path = tmp_path / damaged
        path.write_bytes(data)
        with pytest.raises(SimulatorError):
            context.apply(path)
        path.unlink()
    assert (context.encodings_id, context.applied, context.read_io_encodings()) == state
