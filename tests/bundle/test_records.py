"""The tree of records: one form for the same adapters, and what one of them costs does not grow with their number."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from lora_core.bundle import records as records_module
from lora_core.bundle.entries import AdapterRecord, Branch, BundledAdapter
from lora_core.bundle.records import RecordNode, Records, difference

NAMES = [f"a{number}" for number in range(40)]


@pytest.fixture(autouse=True)
def small_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "LEAF", 3)


class Shelf:
    """Nodes that are stored, and how often each was read."""

    def __init__(self, records: Records) -> None:
        self.nodes = {node.branch: node for node in difference(Records.of(()), records).files.values()}
        self.read_prefixes: list[str] = []
        root = RecordNode(prefix="", records=records.root.records, branches=records.root.named)
        self.records = Records(root=root, source=self)

    def read(self, branch: Branch) -> RecordNode:
        node = self.nodes[branch]
        self.read_prefixes.append(branch.prefix)
        return RecordNode(prefix=node.prefix, records=node.records, branches=node.named)

    def now(self) -> Records | None:
        return None

    def seen(self) -> Iterator[AdapterRecord]:
        return iter(())


def records_of(names: Iterable[str], digest: str = "d") -> list[AdapterRecord]:
    return [
        AdapterRecord(adapter=BundledAdapter(name=name, digest=digest * 64, foundation="f" * 64, rank=1, modules=1))
        for name in names
    ]


def test_the_same_adapters_make_the_same_tree_in_whatever_order_they_come_and_go() -> None:
    chance = random.Random(5)
    whole = Records.of(records_of(NAMES))
    for _ in range(5):
        grown = Records.of(())
        for record in records_of(chance.sample([*NAMES, "x1", "x2", "x3"], 43)):
            grown = grown.changed([record])
        for name in ("x3", "x1", "x2"):
            grown = grown.changed(dropped=[name])
        assert grown == whole


def test_a_record_is_found_on_one_way_down() -> None:
    shelf = Shelf(Records.of(records_of(NAMES)))
    assert shelf.records.find("a7") == records_of(["a7"])[0]
    assert shelf.read_prefixes == [shelf.read_prefixes[-1][: depth + 1] for depth in range(len(shelf.read_prefixes))]
    assert len(shelf.read_prefixes) < 4


def test_a_change_reads_and_writes_one_way_down() -> None:
    shelf = Shelf(Records.of(records_of(NAMES)))
    changed = shelf.records.changed(records_of(["a7"], digest="e"))
    written = difference(shelf.records, changed).files
    assert [f"manifest/{prefix}.json" for prefix in dict.fromkeys(shelf.read_prefixes)] == list(written)
    assert len(changed) == len(NAMES)


def test_the_number_and_equality_are_known_without_reading() -> None:
    one, other = (Shelf(Records.of(records_of(NAMES))) for _ in range(2))
    assert len(one.records) == len(NAMES)
    assert one.records == other.records
    assert one.records != Records.of(records_of(NAMES, digest="e"))
    assert one.read_prefixes == other.read_prefixes == []


def test_all_records_come_by_name() -> None:
    shelf = Shelf(Records.of(records_of(NAMES)))
    assert [record.name for record in shelf.records.all] == sorted(NAMES)


def test_files_are_gone_that_a_smaller_bundle_does_not_need() -> None:
    shelf = Shelf(Records.of(records_of(NAMES)))
    few = shelf.records.changed(dropped=NAMES[2:])
    assert few == Records.of(records_of(NAMES[:2]))
    changes = difference(shelf.records, few)
    assert changes.files == {}
    assert set(changes.gone) == {f"manifest/{branch.prefix}.json" for branch in shelf.nodes}


def test_a_name_in_another_case_has_the_same_place() -> None:
    records = Records.of(records_of(NAMES))
    assert records.find("A7") is None
    found = records.find("A7", like=True)
    assert found is not None
    assert found.name == "a7"
    assert records.find("b7", like=True) is None
