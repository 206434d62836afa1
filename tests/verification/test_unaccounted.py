"""Bytes that a bundle should not hold are found although every hash is the manifest's."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
from lora_core_xnnpack.files.data_file import DataBlob, serialize, stored_blobs
from lora_core_xnnpack.files.joining import with_segments
from lora_core_xnnpack.files.program_root import ProgramRoot

import lora_core
from lora_core.bundle.bundle import Artifact, Bundle
from lora_core.errors import LoraCoreError
from tests.verification.breaking import rehash, write_manifest

OTHER_BASE = np.random.default_rng(7).bytes(300_000)


def problems(bundle: Bundle) -> str:
    """Return what inspect says of the bundle, whose hashes are made those of its files, and that it does not pass."""
    sizes = {path.name: path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()}
    artifacts = tuple(attrs.evolve(each, size=sizes[Path(each.path).name]) for each in bundle.manifest.artifacts)
    bundle = rehash(write_manifest(bundle, artifacts=artifacts))
    try:
        report = lora_core.inspect(bundle.path)
    except LoraCoreError as error:
        return str(error)
    assert not report.passed
    return "; ".join(problem.what for problem in report.problems)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + OTHER_BASE)


def add_segment(path: Path) -> None:
    """Write a program anew with a segment that neither a plan nor a name refers to."""
    root = ProgramRoot.read(path.read_bytes())
    path.write_bytes(b"".join(map(bytes, with_segments(root, [*root.segments(), OTHER_BASE], root.named))))


def lengthen_front(path: Path) -> None:
    """Put bytes between the front of a data file and its segments, and call them part of its flatbuffer."""
    data = bytearray(path.read_bytes())
    size, base = struct.unpack_from("<QQ", data, 24)
    room = OTHER_BASE[: 128 * 200]
    struct.pack_into("<QQ", data, 24, base + len(room) - 48, base + len(room))
    assert size + 48 <= base
    path.write_bytes(bytes(data[:base]) + room + bytes(data[base:]))


def add_tensor(path: Path) -> None:
    """Store another tensor in a data file under a name that nobody reads."""
    data = path.read_bytes()
    blobs = [
        DataBlob(key=each.key, data=data[each.offset : each.offset + each.size], digest=each.key, layout=each.layout)
        for each in stored_blobs(data, path)
    ]
    spare = DataBlob(key="spare", data=OTHER_BASE, digest="spare")
    path.write_bytes(b"".join(map(bytes, serialize([*blobs, spare]))))


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("foundation.ptd", append, "the last 300000 bytes have no name"),
        ("alice.ptd", append, "the last 300000 bytes have no name"),
        ("alice.pte", append, "300000 bytes behind its last segment"),
        ("template/0.pte", append, "300000 bytes behind its last segment"),
        ("base.pte", add_segment, "bytes of 'base.pte', from byte"),
        ("alice.pte", add_segment, "bytes of 'alice.pte', from byte"),
        ("template/0.pte", add_segment, "bytes of 'template/0.pte', from byte"),
        ("foundation.ptd", lengthen_front, "of 'foundation.ptd', from byte"),
        ("alice.ptd", lengthen_front, "of 'alice.ptd', from byte"),
        ("alice.ptd", add_tensor, "300000 bytes of tensors in 'alice.ptd' are read by no method"),
        ("foundation.ptd", add_tensor, "300000 bytes of tensors in 'foundation.ptd' are read by no method"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_a_second_base_is_found(
    float32: Bundle, copy: Callable[[Bundle], Bundle], file: str, change: Callable[[Path], None], told: str
) -> None:
    bundle = copy(float32)
    change(bundle.file(file))
    assert told in problems(bundle)


def test_a_file_that_nothing_refers_to_is_found(float32: Bundle, copy: Callable[[Bundle], Bundle]) -> None:
    bundle = copy(float32)
    (bundle.path / "spare.bin").write_bytes(OTHER_BASE)
    spare = Artifact(path="spare.bin", role="program", sha256="0" * 64, size=len(OTHER_BASE), adapter="alice")
    bundle = write_manifest(bundle, artifacts=(*bundle.manifest.artifacts, attrs.evolve(spare, role="notes")))
    assert "300000 bytes of 'spare.bin', from byte 0 on, are in no tensor" in problems(bundle)


def test_verify_finds_what_inspect_finds(float32: Bundle, copy: Callable[[Bundle], Bundle], sources) -> None:
    bundle = copy(float32)
    add_segment(bundle.file("alice.pte"))
    problems(bundle)
    report = lora_core.verify(bundle.path, sources.model, adapters=sources.adapters, tokens=1)
    assert [each.check for each in report.failures] == ["sharing"]


def test_an_honest_bundle_has_nothing_but_what_is_told(float32: Bundle, int8: Bundle) -> None:
    assert lora_core.inspect(float32.path).problems == lora_core.inspect(int8.path).problems == ()
