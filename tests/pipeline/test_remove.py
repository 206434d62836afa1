"""Removing undoes adding, to the byte."""

from __future__ import annotations

import pytest

import lora_core
from lora_core.bundle.store import open_bundle, verify_hashes
from lora_core.errors import UsageError


@pytest.mark.parametrize("layout", ["split", "joint"])
def test_removing_gives_the_bytes_of_an_export_without_the_adapter(
    export, make_adapter, contents, hub, tmp_path, layout
):
    adapters = {name: make_adapter(name) for name in ("a", "b", "c")}
    export("all", adapters, options={"layout": layout})
    export("one", {"a": adapters["a"]}, options={"layout": layout})
    left = lora_core.remove(tmp_path / "all", ["c", "b"], hub=hub)
    assert [adapter.name for adapter in left.manifest.adapters] == ["a"]
    assert contents(tmp_path / "all") == contents(tmp_path / "one")


def test_the_last_adapter_can_be_removed_and_added_again(export, make_adapter, contents, hub, tmp_path):
    adapter = make_adapter("a")
    export("b", {"a": adapter})
    before = contents(tmp_path / "b")
    assert lora_core.remove(tmp_path / "b", ["a"], hub=hub).manifest.adapters == ()
    assert verify_hashes(open_bundle(tmp_path / "b")) == []
    lora_core.add(tmp_path / "b", {"a": adapter}, hub=hub)
    assert contents(tmp_path / "b") == before


def test_unknown_names_are_all_reported_and_nothing_is_removed(export, make_adapter, contents, hub, tmp_path):
    export("b", {"pirate": make_adapter("pirate")})
    before = contents(tmp_path / "b")
    with pytest.raises(UsageError) as caught:
        lora_core.remove(tmp_path / "b", ["pirat", "pirate", "zzz"], hub=hub)
    assert len(caught.value.problems) == 2
    assert "Did you mean 'pirate'?" in str(caught.value)
    assert contents(tmp_path / "b") == before


def test_removing_nothing_is_refused(export, hub, tmp_path):
    export("b")
    with pytest.raises(UsageError, match="no adapter to remove"):
        lora_core.remove(tmp_path / "b", [], hub=hub)
