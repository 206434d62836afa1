"""Files of a bundle that a stranger wrote: refused before anything is made of what they say."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import lora_core
from lora_core.errors import BundleError


@pytest.fixture
def forged(bundle: Path, tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Return a maker of copies of the bundle in which a file is another, and the manifest true to it."""

    def forge(file: str, content: bytes) -> Path:
        copy = tmp_path / "forged"
        shutil.copytree(bundle, copy)
        (copy / file).write_bytes(content)
        manifest = json.loads((copy / "manifest.json").read_bytes())
        for artifact in manifest["artifacts"]:
            if artifact["path"] == file:
                artifact |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        (copy / "manifest.json").write_text(json.dumps(manifest))
        return copy

    return forge


def model(bundle: Path, change: Callable[[Any], None]) -> bytes:
    import onnx

    made = onnx.load_model(bundle / "model.onnx", load_external_data=False)
    change(made)
    return bytes(made.SerializeToString())


def named(made: Any, name: str) -> Any:
    return next(tensor for tensor in made.graph.initializer if tensor.name == name)


def test_a_context_that_the_model_has_no_positions_for_is_refused_when_it_is_opened(bundle: Path, forged) -> None:
    told = json.loads((bundle / "genai_config.json").read_bytes())
    told["model"]["context_length"] = 10**12
    path = forged("genai_config.json", json.dumps(told).encode())
    with pytest.raises(BundleError, match=r"genai_config\.json .* 32 positions"):
        lora_core.open(path)


@pytest.mark.parametrize("place", ["../outside", "/etc/hostname", "other.data"])
def test_weights_in_another_file_are_not_opened(bundle: Path, forged, place: str) -> None:
    def change(made: Any) -> None:
        next(entry for entry in named(made, "cos_cache").external_data if entry.key == "location").value = place

    with pytest.raises(BundleError, match="is not the weights file"):
        lora_core.open(forged("model.onnx", model(bundle, change)))


def test_tensors_that_overlap_are_refused(bundle: Path, forged) -> None:
    def change(made: Any) -> None:
        place = {entry.key: entry for entry in named(made, "sin_cache").external_data}
        place["offset"].value = str(int(place["offset"].value) - 4)

    with pytest.raises(BundleError, match="overlaps"):
        lora_core.inspect(forged("model.onnx", model(bundle, change)))


def test_parameters_that_share_bytes_in_part_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_core_onnx.storage import adapter_file

    file = bundle / "adapters/alice.onnx_adapter"
    first, *others = adapter_file.read_adapter(file).parameters
    moved = [attrs.evolve(each, offset=first.offset + 4) for each in others[:1]] + others[1:]
    parameters = iter((first, *moved))
    monkeypatch.setattr(adapter_file, "_parameter", lambda *_: next(parameters))
    with pytest.raises(BundleError, match="overlaps"):
        adapter_file.read_adapter(file)


def test_an_empty_parameter_is_refused(tmp_path: Path) -> None:
    import numpy as np
    from lora_core_onnx.storage.adapter_file import read_adapter, write_adapter

    write_adapter(tmp_path / "x", "0" * 64, {"m.lora_A.weight": np.zeros((0, 4), np.float32)})
    with pytest.raises(BundleError, match="a parameter of shape"):
        read_adapter(tmp_path / "x")


@pytest.mark.parametrize("file", ["model.onnx", "genai_config.json", "adapters/alice.onnx_adapter"])
def test_readers_wait_for_no_pipe_and_follow_no_link(bundle: Path, tmp_path: Path, file: str) -> None:
    from lora_core_onnx.genai import context_len_of
    from lora_core_onnx.storage.adapter_file import read_adapter
    from lora_core_onnx.storage.model_file import read_model

    read = {"model.onnx": read_model, "genai_config.json": lambda path: context_len_of(path, 32)}.get(
        file, read_adapter
    )
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(bundle / file)
    for place, said in (("pipe", "a pipe"), ("link", "a link")):
        with pytest.raises(BundleError, match=said):
            read(tmp_path / place)
