"""The published JSON Schema takes the manifests that are written, and no others."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import lora_core
from lora_core.bundle.manifest import dumps, loads
from lora_core.bundle.paths import why_unsafe
from lora_core.errors import BundleError
from lora_core.hub import PluginHub
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.hub.distributions import entry_points_of, install_example

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/bundle/golden"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads((ROOT / "docs/reference/manifest.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture
def golden() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GOLDEN / "manifest-schema-4.json").read_text("utf-8"))
    return document


def test_the_golden_manifest_is_valid(validator: Draft202012Validator, golden: dict[str, Any]) -> None:
    assert list(validator.iter_errors(golden)) == []


def test_an_older_manifest_is_valid_once_it_is_written_again(validator: Draft202012Validator) -> None:
    old = (GOLDEN / "manifest-schema-1.json").read_bytes()
    assert list(validator.iter_errors(json.loads(old)))
    assert list(validator.iter_errors(json.loads(dumps(loads(old, "old"))))) == []


def test_the_manifest_of_a_new_export_is_valid(
    validator: Draft202012Validator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install_example(tmp_path / "site")
    monkeypatch.syspath_prepend(site)
    model = write_tiny_checkpoint(tmp_path / "model")
    adapter = write_tiny_adapter(tmp_path / "alice", seed=1)
    hub = PluginHub(entry_points_of(site))
    lora_core.export(model, adapters={"alice": adapter}, backend="plain", out=tmp_path / "bundle", hub=hub)
    assert list(validator.iter_errors(json.loads((tmp_path / "bundle/manifest.json").read_text("utf-8")))) == []


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda m: m.update(format="zip"),
    "a newer schema": lambda m: m.update(schema_version=5),
    "a field missing": lambda m: m.pop("foundation"),
    "a field unknown": lambda m: m.update(made_at="today"),
    "a number for a string": lambda m: m.update(backend=1),
    "a negative size": lambda m: m["artifacts"][0].update(size=-1),
    "a short hash": lambda m: m["artifacts"][0].update(sha256="0f"),
    "a path out of the bundle": lambda m: m["artifacts"][0].update(path="../secret"),
    "a layer of no kind": lambda m: m["base"]["layers"][0].update(kind="attention"),
    "a slot of an unknown kind": lambda m: m["plans"][0]["slots"][0].update(kind="telepathy"),
    "a version that is no string": lambda m: m["versions"].update(torch=2),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_refused_by_schema_and_reader(
    name: str, validator: Draft202012Validator, golden: dict[str, Any]
) -> None:
    broken = copy.deepcopy(golden)
    BROKEN[name](broken)
    assert list(validator.iter_errors(broken))
    with pytest.raises(BundleError):
        loads(json.dumps(broken).encode(), "broken")


@pytest.mark.parametrize(
    "path",
    [
        *("a", "a/b.pte", "dir/.hidden", "manifest.json/x", "x/manifest.json", "..a/b..", ".lora-cores", "ä b"),
        *("manifests", "manifests/0", "manifest.d"),
        *("", "/a", "a//b", "a/", "./a", "a/..", "..", "a\\b", "c:x", "manifest.json", ".lora-core", ".lora-core/lock"),
        *("manifest", "manifest/0.json", "manifest/x/y"),
    ],
)
def test_the_schema_takes_the_paths_that_the_reader_takes(
    path: str, validator: Draft202012Validator, golden: dict[str, Any]
) -> None:
    golden["artifacts"].append({**golden["artifacts"][0], "path": path})
    errors = [each for each in validator.iter_errors(golden) if each.validator == "pattern"]
    assert bool(errors) == (why_unsafe(path) is not None)
