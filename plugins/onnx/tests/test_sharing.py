"""The model's own account of what it stores, from files that were damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs
import numpy as np
import onnx
import pytest
from lora_core_onnx.sharing import OnnxSharing, external_tensors

from lora_core.bundle.store import open_bundle
from lora_core.errors import BundleError
from lora_core.sharing.accounting import unaccounted_problems


def test_every_byte_of_a_bundle_is_a_tensor_or_a_known_part(bundle: Path) -> None:
    assert unaccounted(bundle, bundle) == []


@pytest.mark.parametrize("file", ["model.onnx.data", "adapters/bob.onnx_adapter"])
def test_bytes_behind_the_last_tensor_are_no_known_part(bundle: Path, tmp_path: Path, file: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    with (copy / file).open("ab") as stream:
        stream.write(b"hidden")
    (problem,) = unaccounted(bundle, copy)
    assert f"bytes of '{file}'" in problem


def test_a_tensor_inside_of_the_model_is_no_known_part(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2048, np.float32), "hidden"))
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    (problem,) = unaccounted(bundle, copy)
    assert "bytes of 'model.onnx', from byte 0 on" in problem


def unaccounted(bundle: Path, files: Path) -> list[str]:
    """Return what is said of `files`, the manifest of `bundle` being told their sizes as they are."""
    opened = attrs.evolve(open_bundle(bundle), path=files)
    sizes = tuple(attrs.evolve(each, size=opened.file(each).stat().st_size) for each in opened.manifest.artifacts)
    opened = attrs.evolve(opened, manifest=attrs.evolve(opened.manifest, artifacts=sizes))
    sharing = OnnxSharing()
    return [each.what for each in unaccounted_problems(opened, sharing.blobs(opened), sharing.parts(opened))]


def test_a_model_that_is_cut_short_is_called_damaged(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / "model.onnx").read_bytes()
    cut = tmp_path / "model.onnx"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match=r"model.onnx is damaged or foreign"):
        external_tensors(cut)


def test_damage_to_a_model_is_called_damage_or_harmless(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / "model.onnx").read_bytes()
    damaged, chance, refused = tmp_path / "model.onnx", np.random.default_rng(12), 0
    for place in chance.integers(len(whole) - 8, size=150):
        data = bytearray(whole)
        data[place : place + 4] = chance.bytes(4)
        damaged.write_bytes(data)
        try:
            external_tensors(damaged)
        except BundleError:
            refused += 1
    assert refused > 20
