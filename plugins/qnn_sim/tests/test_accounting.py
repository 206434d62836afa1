"""Every byte of a container is counted, also where its digest was made anew."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
from lora_core_qnn_sim.sharing import QnnSimSharing

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.manifest import dumps
from lora_core.sharing.accounting import unaccounted_problems

SHARING = QnnSimSharing()


def told(bundle: Bundle) -> list[str]:
    blobs = list(SHARING.blobs(bundle))
    return [problem.what for problem in unaccounted_problems(bundle, blobs, SHARING.parts(bundle))]


def test_an_honest_bundle_has_nothing_but_what_is_told(grouped: Any) -> None:
    assert told(grouped) == []


@pytest.mark.parametrize("gone", [["a1"], ["a2"], ["a1", "a2"], ["a2", "a1", "a3", "a4", "a5"]], ids="-".join)
def test_encodings_stay_as_long_as_one_of_their_group_does(grouped: Any, tmp_path: Path, gone: list[str]) -> None:
    path = Path(shutil.copytree(grouped.path, tmp_path / "copy"))
    (path / "manifest.json").write_bytes(dumps(grouped.manifest))
    left = lora_core.remove(path, gone)
    assert lora_core.inspect(path).problems == ()
    assert (path / "sections" / "llm_a1_encodings.bin").exists() == any(name in ("a1", "a2") for name in names(left))
    assert (path / "sections" / "llm_default_adapter.bin").exists()


def names(bundle: Bundle) -> list[str]:
    return [adapter.name for adapter in bundle.manifest.adapters]


@pytest.mark.parametrize("file", ["foundation.bin", "context.bin"])
def test_bytes_behind_the_tensors_are_found(grouped: Any, tmp_path: Path, file: str) -> None:
    bundle = attrs.evolve(grouped, path=Path(shutil.copytree(grouped.path, tmp_path / "copy")))
    path = bundle.file(file)
    data = path.read_bytes() + b"another base"
    at = data.index(b'"digest":"') + len(b'"digest":"')
    blank = data[:at] + b"0" * 64 + data[at + 64 :]
    path.write_bytes(blank[:at] + hashlib.sha256(blank).hexdigest().encode() + blank[at + 64 :])
    artifacts = tuple(attrs.evolve(each, size=bundle.file(each).stat().st_size) for each in bundle.manifest.artifacts)
    bundle = attrs.evolve(bundle, manifest=attrs.evolve(bundle.manifest, artifacts=artifacts))
    (what,) = told(bundle)
    assert what.startswith(f"12 bytes of '{file}', from byte")
