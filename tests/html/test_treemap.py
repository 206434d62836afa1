"""Tiles fill the picture, their areas in proportion to bytes."""

from __future__ import annotations

import itertools

import pytest

from lora_core.html.areas import HEIGHT, WIDTH, tiles
from lora_core.html.treemap import squarify
from lora_core.sharing.blobs import Blob
from lora_core.sharing.report import SharingReport

OWNERS = {"forward": "forward", "a": "a"}
VALUES = [600.0, 300, 200, 200, 50, 20, 20, 5, 1]


def test_areas_are_in_proportion_and_fill_the_picture():
    boxes = squarify(VALUES, width=1000, height=420)
    byte = 1000 * 420 / sum(VALUES)
    assert [box.width * box.height for box in boxes] == pytest.approx([value * byte for value in VALUES])
    assert all(box.x >= 0 and box.x + box.width <= 1000.001 for box in boxes)
    assert all(box.y >= 0 and box.y + box.height <= 420.001 for box in boxes)


def test_tiles_do_not_overlap():
    for one, other in itertools.combinations(squarify(VALUES, width=1000, height=420), 2):
        across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
        down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
        assert min(across, down) < 1e-6


def test_tiles_are_nearly_square():
    assert all(max(b.width / b.height, b.height / b.width) < 4 for b in squarify([1.0] * 20, width=1000, height=420))


def test_nothing_stored_is_no_tile():
    assert squarify([], width=10, height=10) == []
    assert tiles(SharingReport.from_blobs([], OWNERS)) == []


def blob(index: int, size: int, group: str, *methods: str) -> Blob:
    return Blob(
        key=str(index), file="f", offset=index, size=size, sha256=str(index), methods=frozenset(methods), group=group
    )


def test_tiles_tell_who_reads_them():
    blobs = [blob(0, 700, "linear", "forward", "a"), blob(1, 200, "lora", "a"), blob(2, 100, "spare")]
    found = tiles(SharingReport.from_blobs(blobs, OWNERS))
    assert [(tile.label, tile.readers, tile.kind, tile.size) for tile in found] == [
        ("linear", "the base and every adapter", "shared", 700),
        ("lora", "a", "own", 200),
        ("spare", "nobody", "unread", 100),
    ]
    assert sum(tile.box.width * tile.box.height for tile in found) == pytest.approx(WIDTH * HEIGHT)


def test_thousands_of_adapters_stay_readable_and_lose_no_byte():
    names = [f"a{index}" for index in range(1000)]
    blobs = [blob(0, 10_000, "linear", "forward", *names)]
    blobs += [blob(1 + index, 10 + index, "lora", name) for index, name in enumerate(names)]
    report = SharingReport.from_blobs(blobs, {name: name for name in ("forward", *names)})
    found = tiles(report)
    assert len(found) <= 41
    assert sum(tile.size for tile in found) == report.total
    assert any("smaller ones" in tile.label for tile in found)
