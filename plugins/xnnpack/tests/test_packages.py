"""Packages of an XNNPACK bundle's own adapters: read back from it, they link to the same files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from device_linker import DeviceLinker
from device_runner import continuations, runner
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.marks import MARKS
from lora_core_xnnpack.files.program_root import program_blobs
from toolchain import compilers
from workbench import Workbench

import lora_core
from lora_core.adapters.packages.reading import AdapterPackage
from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError
from lora_core.pipeline.packing import package_reference

LAYOUTS = {
    "split": {},
    "embedded": {"adapter_data": "embedded"},
    "multimethod": {"layout": "multimethod"},
}


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="session")
def export(
    one_layer: Workbench, tmp_path_factory: pytest.TempPathFactory, lowered_once: Path
) -> Callable[[str], Bundle]:
    """Export a layout, once: adapters of different ranks and scalings in one plan, one without effect in a module."""
    adapters = {
        "whole": one_layer.adapter("whole", seed=1),
        "padded": one_layer.adapter("padded", seed=2, rank=2, alpha=3.0, targets=("q_proj",)),
        "idle": one_layer.adapter("idle", seed=3, rank=1, zero=("v_proj",)),
    }

    @cache
    def export(layout: str) -> Bundle:
        return lora_core.export(
            one_layer.checkpoint,
            adapters={name: adapter.source for name, adapter in adapters.items()},
            backend="xnnpack",
            policy="fp32",
            out=tmp_path_factory.mktemp("packages") / layout,
            options={"max_context_len": 32, "max_seq_len": 16, **LAYOUTS[layout]},
            cache=lowered_once,
        )

    return export


@pytest.fixture(params=LAYOUTS)
def bundle(request: pytest.FixtureRequest, export: Callable[[str], Bundle]) -> Bundle:
    return export(request.param)


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "bundle"))


def test_the_app_and_its_packages_make_the_bundle_again(bundle: Bundle, tmp_path: Path) -> None:
    shipment = lora_core.ship(bundle, tmp_path / "out")
    assert shipment.app.manifest.adapters == ()
    lora_core.add(shipment.app, [package_reference(package.path) for package in shipment.packages])
    again, before = files_of(shipment.app.path), files_of(bundle.path)
    assert sorted(again) == sorted(before)
    different = [name for name, content in before.items() if again[name] != content]
    # Whether a module with zeros was targeted is not stored, so the manifest counts one module less.
    assert [name for name in different if name != "manifest.json"] == []


def test_a_package_of_a_bundle_has_neither_padding_nor_modules_without_effect(bundle: Bundle, tmp_path: Path) -> None:
    shapes = {}
    for name in ("padded", "idle"):
        package = AdapterPackage.open(lora_core.pack(bundle, name, out=tmp_path / f"{name}.lora").path)
        shapes[name] = {module.rpartition(".")[2]: parts["a"].shape for (module, _), parts in package.tensors.items()}
    assert shapes == {"padded": {"q_proj": (2, 64)}, "idle": {"q_proj": (1, 64)}}


def test_an_adapter_whose_tensors_were_changed_is_not_packed(bundle: Bundle, copied: Path, tmp_path: Path) -> None:
    file = next(copied / name for name in ("whole.ptd", "whole.pte", "model.pte") if (copied / name).exists())
    data = bytearray(file.read_bytes())
    blobs = (stored_blobs if file.suffix == ".ptd" else program_blobs)(data, file)
    data[[blob.offset for blob in blobs if blob.key not in MARKS][-1]] ^= 1  # of the last tensor
    file.write_bytes(data)
    refused = []
    for adapter in bundle.manifest.adapters:
        try:
            lora_core.pack(copied, adapter.name, out=tmp_path / "x.lora")
        except BundleError:
            refused.append(adapter.name)
    assert len(refused) == 1


def test_a_device_adds_packages_to_the_one_program_as_lora_core_does(
    export: Callable[[str], Bundle], linker: DeviceLinker, tmp_path: Path
) -> None:
    bundle = export("multimethod")
    shipment = lora_core.ship(bundle, tmp_path / "out")
    app = shipment.app.path
    opened = linker.open(app / "template/model.pte", app / "template/model.json")
    for package in shipment.packages:
        linker.add_package(opened, app / "model.pte", package.path, None, app / "model.pte")
    linker.close(opened)
    assert (app / "model.pte").read_bytes() == bundle.file("model.pte").read_bytes()


SESSION = """
import json, sys
import numpy as np
import lora_core
session = lora_core.open(sys.argv[1])
prompt, count = json.loads(sys.argv[2]), int(sys.argv[3])
found = {}
for adapter in (None, "whole", "padded", "idle"):
    session.reset()
    tokens = [int(np.argmax(session.step(adapter, prompt, 0)))]
    while len(tokens) < count:
        tokens.append(int(np.argmax(session.step(adapter, tokens[-1:], len(prompt) + len(tokens) - 1))))
    found[adapter or "base"] = tokens
print(json.dumps(found))
"""


def in_split(path: Path, package: Path, out: Path) -> list[str]:
    """Say to the runner: base and two adapters, and a third from its package."""
    loaded = [f"base={path}/base.pte", *(f"{name}={path}/{name}.pte,{path}/{name}.ptd" for name in ("whole", "idle"))]
    linked = f"padded={path}/template/0.pte,{path}/template/0.json,{package},{out}/out.pte,{out}/out.ptd"
    return [*loaded, "--link", linked]


def in_one_program(path: Path, package: Path, out: Path) -> list[str]:
    """Say to the runner the same of one program, from which the third was removed."""
    app = lora_core.remove(shutil.copytree(path, out / "app"), ["padded"]).path
    methods = {"base": "forward", "whole": "whole", "idle": "idle"}
    loaded = [f"{name}={app}/model.pte@{method}" for name, method in methods.items()]
    added = f"padded={app}/template/model.pte,{app}/template/model.json,{package},{app}/model.pte,{out}/more.pte"
    return [*loaded, "--add", added]


@pytest.mark.parametrize(("layout", "words"), [("split", in_split), ("multimethod", in_one_program)])
def test_the_runner_answers_as_the_session_does_and_links_meanwhile(
    export: Callable[[str], Bundle], tmp_path: Path, layout: str, words: Callable[[Path, Path, Path], list[str]]
) -> None:
    if not compilers():
        pytest.skip("there is no C++ compiler (g++ or clang++) on this machine, so the runner is not built")
    bundle = export(layout)
    prompt, count = [1, 77, 5, 42], 12
    package = lora_core.pack(bundle, "padded", out=tmp_path / "padded.lora").path
    path = bundle.path
    program = runner(compilers()[0])
    told = continuations(program, bundle.file("foundation.ptd"), prompt, count, *words(path, package, tmp_path))
    command = [sys.executable, "-W", "ignore", "-c", SESSION, str(path), json.dumps(prompt), str(count)]
    session = subprocess.run(command, capture_output=True, text=True, check=False)
    assert session.returncode == 0, session.stderr[-4000:]
    assert told == json.loads(session.stdout.splitlines()[-1])
    assert len({tuple(tokens) for tokens in told.values()}) > 1  # the adapters do something
