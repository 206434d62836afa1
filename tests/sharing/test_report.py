"""The sharing report counts stored bytes by hash and infers nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_core.bundle.bundle import Method
from lora_core.sharing.blobs import Blob
from lora_core.sharing.report import SharingReport, owners_of


def blob(data: str, size: int, *methods: str, file: str = "f", offset: int = 0, group: str = "") -> Blob:
    return Blob(
        key=f"{data}-key",
        file=file,
        offset=offset,
        size=size,
        sha256=data * 64,
        methods=frozenset(methods),
        group=group,
    )


METHODS = {name: name for name in ("forward", "a", "b")}


def test_bytes_that_two_methods_read_are_shared_and_the_rest_are_their_own():
    report = SharingReport.from_blobs(
        [
            blob("0", 100, "forward", "a", "b"),
            blob("1", 10, "a", offset=100),
            blob("2", 20, "b", offset=110),
            blob("3", 7, offset=130),
        ],
        METHODS,
    )
    assert (report.total, report.shared, report.unread) == (137, 100, 7)
    assert report.unique == {"forward": 0, "a": 10, "b": 20}
    assert report.separate == {"forward": 100, "a": 110, "b": 120}
    assert (report.separately, report.saved) == (330, 200)
    assert report.duplicates == ()


def test_the_same_bytes_stored_twice_are_named_with_both_places():
    report = SharingReport.from_blobs(
        [blob("0", 100, "forward", file="x"), blob("0", 100, "a", file="y", offset=8), blob("1", 5, "a", file="y")],
        METHODS,
    )
    (duplicate,) = report.duplicates
    assert duplicate.places == (("x", 0, "0-key"), ("y", 8, "0-key"))
    assert duplicate.wasted == 100
    assert report.duplicates_of("forward") == (duplicate,)
    assert report.duplicates_of("b") == ()
    assert report.shared == 0


def test_what_two_methods_of_one_adapter_read_is_not_shared():
    owners = {"forward": "forward", "prefill": "forward", "a_forward": "a", "a_prefill": "a"}
    report = SharingReport.from_blobs(
        [blob("0", 100, *owners), blob("1", 10, "a_forward", "a_prefill", offset=100), blob("2", 5, "prefill")],
        owners,
    )
    assert (report.shared, report.unique) == (100, {"forward": 5, "a": 10})
    assert report.saved == 100


def test_owners_are_adapters_and_the_base_by_its_first_method():
    methods = [
        Method(name="forward", program="p"),
        Method(name="prefill", program="p"),
        Method(name="a_forward", program="p", adapter="a"),
    ]
    assert owners_of(methods) == {"forward": "forward", "prefill": "forward", "a_forward": "a"}


def test_equal_names_and_sizes_are_not_sharing():
    one, other = blob("0", 64, "a", file="x"), blob("1", 64, "b", file="y")
    report = SharingReport.from_blobs([one, other], METHODS)
    assert report.shared == 0
    assert report.duplicates == ()
    assert report.saved == 0


def test_two_names_for_one_place_and_empty_tensors_are_no_duplicates():
    twice = [blob("0", 8, "a"), Blob(**{**_fields(blob("0", 8, "b")), "key": "alias"})]
    empty = [blob("e", 0, "a", file="x"), blob("e", 0, "a", file="y")]
    report = SharingReport.from_blobs([*twice, *empty], METHODS)
    assert report.duplicates == ()
    assert (report.total, report.shared) == (8, 8)


def _fields(of: Blob) -> dict[str, object]:
    return {name: getattr(of, name) for name in ("key", "file", "offset", "size", "sha256", "methods", "group")}


def test_groups_and_files_have_a_row_each():
    report = SharingReport.from_blobs(
        [
            blob("0", 100, "forward", "a", group="base", file="x"),
            blob("1", 10, "a", group="lora", file="y"),
            blob("2", 4, "a", file="y", offset=10),
        ],
        METHODS,
    )
    assert [(row.name, row.blobs, row.total, row.shared, row.unique) for row in report.groups] == [
        ("base", 1, 100, 100, 0),
        ("lora", 1, 10, 0, 10),
        ("other", 1, 4, 0, 4),
    ]
    assert [(row.name, row.total) for row in report.files] == [("x", 100), ("y", 14)]
    assert json.loads(json.dumps(report.to_json()))["groups"][0]["name"] == "base"


def test_a_blob_of_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="ghost"):
        SharingReport.from_blobs([blob("0", 1, "ghost")], METHODS)


blobs = st.lists(
    st.tuples(st.sampled_from("0123456789abcdef"), st.sets(st.sampled_from(sorted(METHODS))), st.sampled_from("xyz")),
    max_size=12,
)


@given(blobs)
def test_shared_unique_and_unread_bytes_are_all_bytes(drawn):
    # One hash has one size, as equal bytes do.
    stored = [
        blob(data, int(data, 16), *methods, file=file, offset=1000 * i) for i, (data, methods, file) in enumerate(drawn)
    ]
    report = SharingReport.from_blobs(stored, METHODS)
    assert report.shared + sum(report.unique.values()) + report.unread == report.total
    distinct = len({each.sha256 for each in stored if each.size})
    assert sum(len(each.places) - 1 for each in report.duplicates) == sum(1 for e in stored if e.size) - distinct
    assert sum(row.total for row in report.files) == sum(row.total for row in report.groups) == report.total


class Counted(dict[str, str]):
    """Owners of methods that count how often they are asked for."""

    asked = 0

    def __getitem__(self, method: str) -> str:
        self.asked += 1
        return super().__getitem__(method)


def test_blobs_of_one_base_ask_once_whose_its_many_methods_are():
    owners = Counted({f"m{number}": f"m{number}" for number in range(50)})
    blobs = [blob("0", 1, *owners, offset=offset) for offset in range(40)]
    assert SharingReport.from_blobs(blobs, owners).shared == 40
    assert owners.asked == 50


def test_equal_blobs_of_many_owners_count_for_each_of_them():
    names = {f"m{number}": f"m{number}" for number in range(5)}
    blobs = [blob("0", 10, name, offset=10 * number) for number, name in enumerate(names)]
    assert SharingReport.from_blobs(blobs, names).separate == dict.fromkeys(names, 10)
