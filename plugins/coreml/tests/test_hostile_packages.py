"""A flattened package leads nowhere but into its own folder, and a damaged one is the bundle's fault."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_core_coreml.storage import flatten, mil
from lora_core_coreml.storage.flatten import Region

from lora_core.errors import BundleError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
HONEST = [
    Region(path="a/b/c", offset=0, size=4),
    Region(path="a/d", offset=4, size=2),
    Region(path="e", offset=6, size=0),
]


def tail_of(nodes: Any) -> bytes:
    return json.dumps({"nodes": nodes}).encode()[::-1]


def file(**region: Any) -> dict[str, Any]:
    return {"children": {}, "dataRegion": {"offset": 0, "size": 1, **region}, "kind": 0, "name": "file"}


def folder(children: Any) -> dict[str, Any]:
    return {"children": children, "dataRegion": {"offset": 0, "size": 0}, "kind": 1, "name": "folder"}


def test_an_honest_package_is_read() -> None:
    found = flatten.read_regions(b"data" + flatten.trailer("root", HONEST), where="here")
    assert sorted(found, key=lambda region: region.path) == HONEST


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../../x", "/etc/passwd", "a\\b", "a\nb", "a\0b", "x" * 300])
def test_no_file_has_a_name_that_leads_elsewhere(name: str) -> None:
    for nodes in ([file(), folder({name: 0})], [file(), folder({"f": 0}), folder({name: 1})]):
        with pytest.raises(BundleError, match="damaged or foreign"):
            flatten.read_regions(tail_of(nodes), where="here")


WRONG = {
    "circle": [folder({"a": 1}), folder({"b": 0})],
    "itself": [folder({"a": 0})],
    "shared": [folder({}), folder({"a": 0, "b": 0})],
    "deep": [folder({}), *(folder({"a": index}) for index in range(5000))],
    "no nodes": [],
    "no list": {},
    "text": ["x"],
    "negative child": [file(), folder({"a": -2})],
    "far child": [file(), folder({"a": 99})],
    "boolean child": [file(), folder({"a": False})],
    "negative offset": [file(offset=-1), folder({"a": 0})],
    "text size": [file(size="1"), folder({"a": 0})],
    "fraction": [file(size=0.5), folder({"a": 0})],
    "overlap": [file(size=5), file(offset=3), folder({"a": 0, "b": 1})],
    "list of children": [file(), folder([0])],
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_tree_of_files_is_the_bundles_fault(case: str) -> None:
    with pytest.raises(BundleError, match="damaged or foreign"):
        flatten.read_regions(tail_of(WRONG[case]), where="here")


@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=80), st.binary(max_size=80), st.integers(0, 400))
def test_any_bytes_are_a_package_or_the_bundles_fault(front: bytes, back: bytes, cut: int) -> None:
    data = flatten.trailer("root", HONEST)
    for tail in (front, data[cut:] + back, data[:cut] + back + data[cut + len(back) :]):
        try:
            flatten.read_regions(tail, where="here")
        except BundleError:
            continue


@pytest.mark.parametrize("data", [b"\xff" * 8, b"\x0a\xff", b"\x08"])
def test_a_damaged_model_is_the_bundles_fault(data: bytes) -> None:
    with pytest.raises(BundleError, match="model inside the program is damaged"):
        mil.parse_model(data)
