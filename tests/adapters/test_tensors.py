"""Stored tensors: exact values, lazy reads, damage."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.kinds import max_rank
from lora_core.errors import AdapterError, InputError, Problem
from lora_core.tensors import open_tensors, scan
from tests.adapters.toy import EXAMPLES, base_of, deltas, smollm2, tensors_of, write

SPECIAL = [0.0, -0.0, 1.0, -1.5, 3.3895314e38, 1e-40, 65504.0, 6e-8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_type_reads_as_the_exact_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    limit = torch.finfo(dtype).max
    tensor = torch.cat([torch.tensor(SPECIAL).clamp(-limit, limit), torch.randn(24)]).to(dtype).reshape(8, 4)
    save_file({"odd": torch.zeros(3, dtype=dtype), "tested": tensor}, tmp_path / "file.safetensors")

    (stored,) = [each for each in open_tensors(tmp_path / "file.safetensors") if each.name == "tested"]
    read = stored.read()

    assert stored.shape == (8, 4)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    assert read.tobytes() == tensor.float().numpy().tobytes()


def test_scan_hashes_the_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path, tensors_of(base_of(), "q_proj")) / "adapter_model.safetensors"

    assert scan(path, open_tensors(path)).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "f2"), (np.inf, "f2"), (-np.inf, "f4"), (np.nan, "f4")])
def test_scan_finds_what_is_not_finite(value: float, dtype: str, tmp_path: Path) -> None:
    bad = np.zeros((4, 4), dtype=dtype)
    bad[3, 3] = value
    path = write(tmp_path, {"bad": bad, "good": np.ones(5, np.float32)}) / "adapter_model.safetensors"

    assert scan(path, open_tensors(path)).not_finite == ("bad",)


def test_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    base = base_of()
    adapter = PeftFormat().read("tested", write(tmp_path, tensors_of(base, "q_proj", "v_proj")), base)
    write(tmp_path, tensors_of(base, "q_proj", "v_proj", seed=1))
    os.utime(tmp_path / "adapter_model.safetensors", ns=(1, 1))

    with pytest.raises(AdapterError, match="changed while it was in use"):
        adapter.updates[0].tensors["a"].read()


def test_tensors_are_read_on_demand_and_not_kept(tmp_path: Path) -> None:
    base = base_of()
    update = PeftFormat().read("tested", write(tmp_path, tensors_of(base, "q_proj", "v_proj")), base).updates[0]

    first = update.tensors["a"].read()
    first[:] = 7.0

    assert not np.array_equal(first, update.tensors["a"].read())


def test_cut_file_names_the_first_tensor_that_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path, tensors_of(base_of(), "q_proj", "v_proj")) / "adapter_model.safetensors"
    second = open_tensors(path)[1]
    os.truncate(path, second.offset + 1)

    with pytest.raises(InputError) as caught:
        open_tensors(path)

    assert caught.value.problems[0].where == f"{path}: {second.name}"
    assert "cut short" in caught.value.problems[0].what


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    directory = write(tmp_path_factory.mktemp("good"), tensors_of(base_of(), "q_proj", "v_proj"))
    return tuple((directory / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json"))  # type: ignore[return-value]


@given(data=st.data())
@settings(max_examples=150)
def test_damaged_file_is_refused_or_harmless_but_never_crashes(
    data: st.DataObject, good: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    which = data.draw(st.sampled_from([0, 1]))
    content = bytearray(good[which])
    match data.draw(st.sampled_from(["cut", "overwrite", "insert", "replace"])):
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case "overwrite":
            at = data.draw(st.integers(0, min(len(content), 1500) - 1))
            content[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
        case "insert":
            at = data.draw(st.integers(0, min(len(content), 1500)))
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        case "replace":
            content[:] = data.draw(st.binary(max_size=200))
    files = [good[0], good[1]]
    files[which] = bytes(content)
    (directory / "adapter_model.safetensors").write_bytes(files[0])
    (directory / "adapter_config.json").write_bytes(files[1])

    problems: Sequence[Problem] = ()
    changes: dict[str, npt.NDArray[np.float64]] = {}
    try:
        changes = deltas(PeftFormat().read("tested", directory, base_of()))
    except AdapterError as error:  # anything else that is raised fails the test
        problems = error.problems

    assert bool(problems) != bool(changes)
    assert all("'tested'" in problem.what and str(directory) in problem.where for problem in problems)
    assert all(np.isfinite(change).all() for change in changes.values())


def _entry(size: int, start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [size], "data_offsets": [start, end]}


HEADERS: list[Any] = [
    {"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
    {"t": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    {"t": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
    {"t": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}},
    {"t": {"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]}},
    {"t": {"dtype": "F32", "shape": [2]}},
    {"t": [1, 2]},
    [1, 2],
    {"a": _entry(2, 0, 8), "b": _entry(2, 4, 12)},  # overlap
    {"a": _entry(1, 0, 4), "b": _entry(1, 8, 12)},  # a hole
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: json.dumps(header)[:60])
def test_header_that_does_not_describe_the_file_is_refused(header: Any, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))

    with pytest.raises(InputError) as caught:
        open_tensors(path)

    assert str(path) in caught.value.problems[0].where


def test_more_tensors_than_a_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_core.tensors.TENSORS", 3)
    path = tmp_path / "file.safetensors"
    save_file({f"t{number}": torch.zeros(0) for number in range(4)}, path)

    with pytest.raises(InputError, match="4 tensors, 3 at most"):
        open_tensors(path)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 8, b"\xff" * 100, b"version https://git-lfs.github.com/spec"]
)
def test_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_bytes(content)

    with pytest.raises(InputError):
        open_tensors(tmp_path / "file.safetensors")


def test_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("name", "pairs", "rank", "scalings"),
    [
        ("shout", 60, 8, {2.0}),
        ("pirate", 60, 8, {2.0}),
        ("json", 210, 8, {8 / 4**0.5, 16 / 8**0.5}),
    ],
)
def test_example_adapter_reads_with_its_own_rank_and_scaling(
    name: str, pairs: int, rank: int, scalings: set[float]
) -> None:
    adapter = PeftFormat().read(name, EXAMPLES / name, smollm2())

    assert len(adapter.updates) == pairs
    assert max_rank(adapter) == rank
    assert {update.scaling for update in adapter.updates} == scalings
    assert adapter.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    layers = [int(update.module.split(".")[2]) for update in adapter.updates]
    assert layers == sorted(layers)  # 10 comes after 9, not after 1


def test_importing_the_adapters_imports_nothing_heavy() -> None:
    program = (
        "import sys, lora_core.adapters.peft.format, lora_core.adapters.reading, lora_core.adapters.slots.plan;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'transformers', 'peft', 'executorch', 'coremltools', 'torchao', 'huggingface_hub'}))"
    )

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout == "[]\n"
