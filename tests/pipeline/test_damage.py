"""A damaged bundle is never extended, and what a plugin stumbles over in it is the bundle's fault."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import lora_core
from lora_core.bundle.store import open_bundle
from lora_core.errors import BundleError, UnsupportedError


@pytest.fixture
def damaged(export, make_adapter) -> Path:
    """A bundle in one file of whose adapters a bit fell over, before its manifest was last written."""
    bundle = export("b", {"a": make_adapter("a"), "b": make_adapter("b")}, options={"layout": "joint"})
    flip(bundle.path / "adapters.safetensors", -1)
    manifest = bundle.path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes())
    return bundle.path


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def changes(path: Path, adapter: Path, hub):
    return {
        "add": lambda: lora_core.add(path, {"c": adapter}, hub=hub),
        "remove": lambda: lora_core.remove(path, ["a"], hub=hub),
    }


@pytest.mark.parametrize("change", ["add", "remove"])
def test_damaged_bytes_get_no_new_hash(damaged, make_adapter, hub, contents, change):
    adapter, before = make_adapter("c"), contents(damaged)
    with pytest.raises(BundleError, match=r"'adapters\.safetensors' has SHA-256"):
        changes(damaged, adapter, hub)[change]()
    assert contents(damaged) == before


@pytest.mark.parametrize("change", ["add", "remove"])
def test_what_a_plugin_stumbles_over_in_a_damaged_file_is_the_bundles_fault(
    damaged, make_adapter, hub, contents, change
):
    adapter = make_adapter("c")
    flip(damaged / "adapters.safetensors", 3)
    before = contents(damaged)
    with pytest.raises(BundleError, match=r"adapters\.safetensors"):
        changes(damaged, adapter, hub)[change]()
    assert contents(damaged) == before


def test_inspecting_a_damaged_file_that_a_plugin_stumbles_over_names_it(damaged, hub):
    flip(damaged / "adapters.safetensors", 3)
    with pytest.raises(BundleError, match=r"'adapters\.safetensors' has SHA-256"):
        lora_core.inspect(damaged, hub=hub)


@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_bundle_with_a_linked_directory_is_not_changed(export, make_adapter, hub, tmp_path, change):
    path = export("b", {"a": make_adapter("a")}).path
    shutil.move(path / "templates", tmp_path / "elsewhere")
    (path / "templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="'templates' is a link"):
        changes(path, make_adapter("c"), hub)[change]()


def test_a_file_that_the_manifest_does_not_list_is_not_read(export, make_adapter):
    bundle = export("b", {"a": make_adapter("a")})
    (bundle.path / "stray").write_bytes(b"x")
    with pytest.raises(BundleError, match="lists no file 'stray'"):
        open_bundle(bundle.path).file("stray")


@pytest.mark.parametrize("comes_back", [False, True])
def test_opening_between_two_states_opens_again(export, make_adapter, hub, fake, monkeypatch, comes_back):
    sources = {name: make_adapter(name, seed=seed) for seed, name in enumerate("ab")}
    bundle = export("b", sources, options={"layout": "joint"})
    open_ = fake.FakeBackend.open
    opened = []

    def meanwhile(self, found, options):
        opened.append(found)
        if len(opened) == 1:
            lora_core.remove(bundle.path, ["b"], hub=hub)
            if comes_back:  # its bytes are those of before, and it is still another
                lora_core.add(bundle.path, {"b": sources["b"]}, hub=hub)
        return open_(self, found, options)

    monkeypatch.setattr(fake.FakeBackend, "open", meanwhile)
    with pytest.raises(UnsupportedError):  # the backend runs nothing; what counts is how often it was asked
        lora_core.open(bundle.path, hub=hub)
    assert [tuple(found.manifest.names) for found in opened] == [("a", "b"), ("a", "b") if comes_back else ("a",)]


def test_an_inspection_between_two_states_looks_again(export, make_adapter, hub, fake, monkeypatch):
    bundle = export("b", {"a": make_adapter("a"), "b": make_adapter("b")}, options={"layout": "joint"})
    blobs = fake.FakeSharing.blobs
    removed = []

    def meanwhile(self, opened):
        if not removed:
            removed.append("b")
            lora_core.remove(bundle.path, ["b"], hub=hub)
        return blobs(self, opened)

    monkeypatch.setattr(fake.FakeSharing, "blobs", meanwhile)
    report = lora_core.inspect(bundle.path, hub=hub)
    assert report.passed
    assert [adapter.name for adapter in report.bundle.manifest.adapters] == ["a"]
