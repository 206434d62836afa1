"""Adapters by hub id: found in the local cache, and never mistaken for directories."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import lora_core
from lora_core.adapters.reference import AdapterReference, parse_references
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError
from lora_core.hub import PluginHub
from lora_core.pipeline.given import located


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def put(cache: Path, adapter: Path, ref: str) -> Path:
    """Put `adapter` into the cache as huggingface_hub arranges it: a snapshot of links to blobs."""
    repository = cache / f"models--{ref.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc123"
    (repository / "refs").mkdir(parents=True)
    (repository / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for file in adapter.iterdir():
        shutil.copy(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    (repository / "refs" / "main").write_text("abc123")
    return snapshot


def test_a_hub_id_is_its_snapshot(
    cache: Path, export: Callable[..., Bundle], make_adapter: Callable[..., Path]
) -> None:
    adapter = make_adapter("plain")
    put(cache, adapter, "me/tiny-lora")

    hub, plain = (export(f"bundle{index}", {"a": path}) for index, path in enumerate(("me/tiny-lora", adapter)))

    assert hub.manifest.adapters == plain.manifest.adapters


def test_a_hub_id_can_be_added(
    cache: Path, export: Callable[..., Bundle], make_adapter: Callable[..., Path], hub: PluginHub
) -> None:
    bundle = export("bundle", {"a": make_adapter("plain")})
    put(cache, make_adapter("other"), "me/other")

    changed = lora_core.add(bundle, {"b": "me/other"}, hub=hub)

    assert [each.name for each in changed.manifest.adapters] == ["a", "b"]


def test_parts_of_a_composite_may_be_hub_ids(cache: Path, make_adapter: Callable[..., Path]) -> None:
    snapshot = put(cache, make_adapter("plain"), "me/tiny-lora")

    (mixed,) = located(parse_references(["mix=me/tiny-lora:0.5+./near:0.5"]))

    assert [part.of for part in mixed.parts] == [str(snapshot), "./near"]


def test_a_directory_that_exists_is_that_directory(cache: Path, make_adapter: Callable[..., Path]) -> None:
    put(cache, make_adapter("plain"), "adapters/plain")
    reference = AdapterReference(name="a", directory=Path("adapters/plain"))

    assert located([reference]) == (reference,)


def test_what_is_neither_is_told_for_each(cache: Path) -> None:
    references = [AdapterReference(name=name, directory=Path(f"me/{name}")) for name in ("one", "two")]

    with pytest.raises(AdapterError) as caught:
        located(references)

    assert [problem.what.partition(" is ")[0] for problem in caught.value.problems] == [
        "Adapter 'me/one'",
        "Adapter 'me/two'",
    ]
    assert "--download" in caught.value.problems[0].remedy
