"""Files that are not what ExecuTorch writes are refused by name, in time and memory that their size bounds."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_core_xnnpack.files.data_file import DataBlob, _require_named, serialize, stored_blobs
from lora_core_xnnpack.files.named_blobs import TensorLayout, named_strings, string_bytes
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.files.program_front import ProgramTail, assemble
from lora_core_xnnpack.files.program_root import NOT_WHOLE, program_blobs
from lora_core_xnnpack.files.writer import Writer
from lora_core_xnnpack.slot_tensors import SCHEMA_VERSION, TensorRelocation, read_table

from lora_core.errors import BundleError
from lora_core.pte import HEADER_LENGTH

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
WHERE = Path("file")
LAYOUT = TensorLayout(scalar_type=6, sizes=(2, 2), dim_order=(0, 1))
BLOBS = [
    *(DataBlob.under_content_key(bytes([value]) * 16) for value in range(3)),
    DataBlob(key="norm.weight", data=b"x" * 16, digest="x", layout=LAYOUT),
]
DATA_FILE = b"".join(map(bytes, serialize(BLOBS)))


def program() -> bytes:
    """Return a program without methods: constants, mutable segments and named data."""
    writer = Writer()
    vectors = (writer.offsets(()), writer.offsets(()), writer.offsets(()))
    tail = ProgramTail(
        data=writer.data(),
        min_align=writer.min_align,
        vectors=vectors,
        vtables=tuple(writer.vtables.items()),
        version=0,
        header_length=HEADER_LENGTH,
        file_identifier=b"ET12",
        constant_segment=None,
        mutable_segments=None,
    )
    return b"".join(map(bytes, assemble(tail, [b"a" * 16, b"b" * 16], [("first", 0), ("second", 1)])))


PROGRAM = program()
TABLE = {
    "schema_version": SCHEMA_VERSION,
    "tensors": [{"module": "m", "part": "a", "shape": [2, 2], "sites": [{"payload": 0, "offset": 4}]}],
}


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Return `data` with some words overwritten, and cut or extended."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = 4 * draw(st.integers(0, len(data) // 4 - 1))
        word = draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, len(data)]) | st.integers(0, 2**32 - 1))
        struct.pack_into("<I", changed, at, word)
    if draw(st.booleans()):
        del changed[draw(st.integers(0, len(changed))) :]
    return bytes(changed)


def test_what_the_damages_begin_with_is_whole() -> None:
    assert [blob.key for blob in stored_blobs(DATA_FILE, WHERE)] == [blob.key for blob in BLOBS]
    assert [blob.key for blob in program_blobs(PROGRAM, WHERE)] == ["first", "second"]
    assert dict(ProgramParts.parse(PROGRAM).named) == {"first": b"a" * 16, "second": b"b" * 16}


@settings(max_examples=EXAMPLES)
@given(damaged(DATA_FILE))
def test_any_data_file_is_read_or_refused(data: bytes) -> None:
    try:
        blobs = stored_blobs(data, WHERE)
    except BundleError:
        return
    assert all(0 <= blob.offset <= blob.offset + blob.size <= len(data) for blob in blobs)


@settings(max_examples=EXAMPLES)
@given(damaged(PROGRAM))
def test_any_program_is_read_or_refused(data: bytes) -> None:
    try:
        program_blobs(data, WHERE)
    except BundleError:
        return
    try:
        ProgramParts.parse(data)
    except NOT_WHOLE:
        return


@pytest.mark.parametrize("count", [10**6, 2**31, 2**32 - 1])
def test_a_count_that_the_file_cannot_hold_is_refused_before_anything_is_made(count: int) -> None:
    for at in range(0, 400, 4):
        data = bytearray(DATA_FILE)
        struct.pack_into("<I", data, at, count)
        try:
            stored_blobs(bytes(data), WHERE)
        except BundleError:
            continue


def test_bytes_that_no_name_stands_for_are_refused() -> None:
    second = DATA_FILE + bytes(100) + DATA_FILE
    with pytest.raises(BundleError, match=r"the last \d+ bytes have no name"):
        stored_blobs(second, WHERE)


def test_a_program_with_bytes_behind_its_segments_is_refused() -> None:
    with pytest.raises(BundleError, match=r"bytes behind its last segment"):
        program_blobs(PROGRAM + bytes(500), WHERE)


def test_a_segment_that_no_name_stands_for_is_refused() -> None:
    blobs = [BLOBS[0], DataBlob(key="b", data=bytes(500), digest="b"), BLOBS[3]]
    data = b"".join(map(bytes, serialize(blobs)))
    honest = [blob for blob in stored_blobs(data, WHERE) if blob.key != "b"]
    with pytest.raises(ValueError, match=r"bytes before 'norm\.weight' have no name"):
        _require_named(data, honest[0].offset, honest)


def test_many_names_for_one_segment_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_core_xnnpack.files.named_blobs._TABLES", 50)
    keys = [DataBlob(key=f"{number:08}", data=b"x", digest="x") for number in range(51)]
    with pytest.raises(BundleError, match="51 tables"):
        stored_blobs(b"".join(map(bytes, serialize(keys))), WHERE)


VALUES = (None, True, -1, 1.5, 2**62, "", "x", [], {}, [[]], [{}])


def places(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((*at, key), *places(inner, (*at, key)))]


@pytest.mark.parametrize("place", places(TABLE)[1:], ids=str)
def test_every_field_of_a_relocation_table_has_its_type(place: tuple[str | int, ...], tmp_path: Path) -> None:
    read, blamed = [], set()
    for value in VALUES:
        document = json.loads(json.dumps(TABLE))
        inner = document
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        (tmp_path / "table.json").write_text(json.dumps(document))
        try:
            tensors = read_table(
                tmp_path / "table.json", lambda told: [TensorRelocation.from_json(each) for each in told["tensors"]]
            )
        except BundleError as error:
            blamed.add(error.problems[0].where)
        else:
            read += [number for tensor in tensors for number in (*tensor.shape, *(s.offset for s in tensor.sites))]
    assert blamed == {str(tmp_path / "table.json")}
    assert all(type(number) is int and number >= 0 for number in read)


@given(
    st.lists(st.binary(min_size=1, max_size=70).filter(lambda text: b"\0" not in text), max_size=6),
    st.binary(max_size=9),
)
def test_every_string_that_a_program_names_is_found(texts: list[bytes], between: bytes) -> None:
    names = [text.replace(b"\0", b"o") for text in texts]
    assert set(names) <= named_strings(between.join(map(string_bytes, names)))


def test_strings_are_found_among_numbers() -> None:
    chance = np.random.default_rng(5).integers(0, 255, 10_000, np.uint8).tobytes()
    assert b"norm.weight" in named_strings(chance + string_bytes(b"norm.weight") + chance)
