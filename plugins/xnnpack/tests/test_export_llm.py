"""What ExecuTorch's own LLM exporter stores for the same base and adapter, key by key and byte by byte.

Four differences are wanted. Ours folds `alpha / r` into B, theirs multiplies in the graph; with `alpha == r` both are
1. Our rotary tables are correctly rounded, theirs are what torch's cosine gives on the processor at hand. Ours has the
three constants with which XNNPACK computes means and half-turns, and the foundation's mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import export_llm
import numpy as np
import numpy.typing as npt
import pytest
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.marks import FOUNDATION_MARK
from lora_core_xnnpack.files.program_root import program_blobs
from workbench import ALL_LINEAR, TINY_OPTIONS, Workbench

from lora_core.backend import Artifacts, ExportJob
from lora_core.testing.tiny import TINY_LLAMA

# By the patches that test_fast_lowering.py holds to change no byte.
FAST = Path(__file__).with_name("fast_export_llm.py")


def data_of(path: Path) -> dict[str, bytes]:
    content = path.read_bytes()
    return {blob.key: content[blob.offset : blob.offset + blob.size] for blob in stored_blobs(content, path)}


def lean_constants() -> list[npt.NDArray[np.float32]]:
    hidden, half = TINY_LLAMA["hidden_size"], TINY_LLAMA["hidden_size"] // TINY_LLAMA["num_attention_heads"] // 2
    half_turn = np.kron(np.array([[0, -1], [1, 0]]), np.eye(half)) + 0.0
    epsilon = np.float32([TINY_LLAMA["rms_norm_eps"]])
    return [np.full((1, hidden), 1 / hidden, np.float32), epsilon, half_turn.astype(np.float32)]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param((FAST,), id="made faster"),
        pytest.param(("-m", export_llm.MODULE), id="as it is", marks=pytest.mark.deep),
    ],
)
def test_foundation_and_adapter_data_are_those_of_the_exporter_of_executorch(
    one_layer: Workbench,
    exported: Callable[[ExportJob], tuple[Path, Artifacts]],
    tmp_path: Path,
    lowered_once: Path,
    program: Sequence[str | Path],
) -> None:
    adapter = one_layer.adapter("theirs", seed=8, rank=4, alpha=4.0, targets=ALL_LINEAR)
    out, _ = exported(one_layer.job([adapter], cache=lowered_once))
    prepared = tmp_path / "prepared"
    export_llm.convert(one_layer.checkpoint, prepared)
    context = TINY_OPTIONS.max_context_len
    peer = export_llm.run(
        prepared,
        tmp_path / "peer",
        adapter=Path(adapter.source),
        context=context,
        log=tmp_path / "peer.log",
        program=program,
    )
    assert data_of(out / "theirs.ptd") == data_of(peer.directory / "lora.ptd")
    ours, theirs = data_of(out / "foundation.ptd"), data_of(peer.directory / "foundation.ptd")
    ours.pop(FOUNDATION_MARK)
    added = {key: ours.pop(key) for key in ours.keys() - theirs.keys()}
    assert sorted(added.values()) == sorted(constant.tobytes() for constant in lean_constants())
    assert ours.keys() == theirs.keys()
    tables = {key for key in ours if "freqs" in key}
    assert len(tables) == 2
    assert {key for key in ours if ours[key] != theirs[key]} <= tables
    for key in tables:
        # Cosines and sines are at most 1 in magnitude: a unit in the last place is at most 2^-24.
        distance = np.frombuffer(ours[key], np.float32) - np.frombuffer(theirs[key], np.float32)
        assert np.abs(distance).max() <= 2.0**-24
    program = (peer.directory / "program.pte").read_bytes()
    assert program_blobs(program, peer.directory) == []
