"""A foundation says what it is, and a program which one it was made for: files of two bundles are not mixed unseen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from lora_core_xnnpack.artifacts import MARK_DETAIL
from lora_core_xnnpack.files.data_file import DataBlob, serialize, stored_blobs
from lora_core_xnnpack.files.marks import (
    FOUNDATION_MARK,
    MARK_LENGTH,
    FoundationMark,
    foundation_mark,
    mark_file,
    marked,
    program_adapters,
    program_mark,
    program_marks,
    require_adapters,
    require_mark,
    says_true,
)
from lora_core_xnnpack.files.named_blobs import TensorLayout
from lora_core_xnnpack.files.parts import data_parts, program_parts
from safetensors.numpy import load_file, save_file
from synthetic import make_template, plan_of
from workbench import Workbench

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError

LAYOUT = TensorLayout(scalar_type=6, sizes=(2, 2), dim_order=(0, 1))
LINEAR = DataBlob.under_content_key(b"w" * 64)


def named(data: bytes) -> DataBlob:
    return DataBlob(key="norm.weight", data=data, digest=DataBlob.under_content_key(data).key, layout=LAYOUT)


def foundation(path: Path, *blobs: DataBlob) -> Path:
    path.write_bytes(b"".join(map(bytes, serialize(blobs))))
    return path


def program(path: Path, mark: str | None, *adapters: str) -> Path:
    from lora_core_xnnpack.split.rewriting import rewrite

    template = make_template(plan_of({"m": (2, 4, 4)}), seed=1)
    path.write_bytes(b"".join(map(bytes, rewrite(template, (), program_marks(mark, adapters)))))
    return path


def test_a_marked_foundation_holds_what_it_held_and_its_mark(tmp_path: Path) -> None:
    path = foundation(tmp_path / "foundation.ptd", LINEAR, named(b"n" * 16))
    before = {blob.key: blob.layout for blob in stored_blobs(path.read_bytes(), path)}
    mark = mark_file(path)
    stored = stored_blobs(path.read_bytes(), path)
    assert {blob.key: blob.layout for blob in stored if blob.key != FOUNDATION_MARK} == before
    assert foundation_mark(path) == mark


def test_what_is_stored_under_a_name_counts(tmp_path: Path) -> None:
    one = mark_file(foundation(tmp_path / "one.ptd", LINEAR, named(b"n" * 16)))
    other = mark_file(foundation(tmp_path / "other.ptd", LINEAR, named(b"m" * 16)))
    assert one != other


def test_a_foreign_foundation_is_refused_by_its_name(tmp_path: Path) -> None:
    mine = mark_file(foundation(tmp_path / "mine.ptd", LINEAR, named(b"n" * 16)))
    theirs = foundation(tmp_path / "foundation.ptd", LINEAR, named(b"m" * 16))
    with pytest.raises(BundleError, match=r"foundation\.ptd is not the foundation .*: it carries no mark"):
        require_mark(mine, FoundationMark(theirs))
    mark_file(theirs)
    with pytest.raises(BundleError, match=r"foundation\.ptd is not the foundation .*: its mark is"):
        require_mark(mine, FoundationMark(theirs))


def test_a_foundation_that_changes_is_read_again(tmp_path: Path) -> None:
    path = foundation(tmp_path / "foundation.ptd", LINEAR, named(b"n" * 16))
    mark = FoundationMark(path)
    assert mark.read() is None
    assert mark_file(path) == mark.read() != mark_file(foundation(path, LINEAR, named(b"m" * 16))) == mark.read()


def test_a_foreign_program_is_refused_by_its_name(tmp_path: Path) -> None:
    path = foundation(tmp_path / "foundation.ptd", LINEAR)
    mark = mark_file(path)
    own, foreign = program(tmp_path / "own.pte", mark), program(tmp_path / "pirate.pte", "0" * 64)
    require_mark(mark, FoundationMark(path), [own])
    with pytest.raises(BundleError, match=r"pirate\.pte was made for another foundation"):
        require_mark(mark, FoundationMark(path), [own, foreign])


def test_files_of_older_bundles_carry_no_marks_and_are_opened(tmp_path: Path) -> None:
    old = program(tmp_path / "old.pte", None)
    assert program_mark(old) is None
    assert program_adapters(program(tmp_path / "old.pte", None, "some")) is None
    require_mark(None, FoundationMark(foundation(tmp_path / "foundation.ptd", LINEAR)), [old])
    require_adapters(["some"], old)


def test_a_program_says_of_which_adapters_it_is(tmp_path: Path) -> None:
    assert program_adapters(program(tmp_path / "both.pte", "0" * 64, "zulu", "alpha")) == "alpha\nzulu"
    assert program_adapters(program(tmp_path / "base.pte", "0" * 64)) is None


@pytest.mark.parametrize("names", [[], ["formal"], ["formal", "pirate"]])
def test_the_program_of_another_adapter_is_refused_by_its_name(names: list[str], tmp_path: Path) -> None:
    path = program(tmp_path / "formal.pte", "0" * 64, "pirate")
    with pytest.raises(BundleError, match=r"formal\.pte is the program of 'pirate', and the manifest says"):
        require_adapters(names, path)


def test_one_of_the_adapters_of_a_program_is_enough_where_it_may_have_others(tmp_path: Path) -> None:
    path = program(tmp_path / "model.pte", "0" * 64, "formal", "pirate")
    require_adapters(["pirate"], path, others=True)
    with pytest.raises(BundleError, match=r"is the program of 'formal', 'pirate'"):
        require_adapters(["other"], path, others=True)


def test_what_is_stored_behind_a_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    longer = attrs.evolve(marked(FOUNDATION_MARK, "0" * MARK_LENGTH), data=b"0" * MARK_LENGTH + b"another base")
    path = foundation(tmp_path / "foundation.ptd", LINEAR, longer)
    assert [size for _, size, what in data_parts(path.read_bytes(), path) if what == "mark"] == [MARK_LENGTH]
    of_another = program(tmp_path / "a.pte", "1" * 1000)
    assert [size for _, size, what in program_parts(of_another.read_bytes(), of_another) if what == "mark"] == [
        MARK_LENGTH
    ]


def test_a_mark_that_is_not_that_of_the_content_is_found(tmp_path: Path) -> None:
    path = foundation(tmp_path / "foundation.ptd", LINEAR)
    mark_file(path)
    assert says_true(path)
    path.write_bytes(path.read_bytes().replace(b"w" * 64, b"v" * 64))
    assert not says_true(path)


@pytest.fixture(scope="module")
def fine_tune(one_layer: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with another norm: all of its linear layers are those of the original."""
    folder = Path(shutil.copytree(one_layer.checkpoint, tmp_path_factory.mktemp("fine-tune") / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("layout", ["split", "multimethod"])
def test_the_foundation_of_another_fine_tune_is_not_run(
    layout: str, one_layer: Workbench, fine_tune: Path, tmp_path: Path, lowered_once: Path
) -> None:
    options = {"layout": layout, "max_context_len": 32, "max_seq_len": 16}
    mine, theirs = (
        lora_core.export(
            model,
            backend="xnnpack",
            policy="fp32",
            out=tmp_path / model.name / "out",
            options=options,
            cache=lowered_once,
        )
        for model in (one_layer.checkpoint, fine_tune)
    )
    assert recorded(mine) != recorded(theirs)
    shutil.copy(theirs.path / "foundation.ptd", mine.path / "foundation.ptd")
    with lora_core.open(mine.path) as session, pytest.raises(BundleError, match=r"foundation\.ptd is not the found"):
        session.load(None)


def recorded(bundle: Bundle) -> object:
    return bundle.manifest.detail[MARK_DETAIL]


@pytest.mark.parametrize("layout", ["split", "multimethod"])
def test_every_program_of_a_bundle_is_marked_and_accounted_for(
    layout: str, one_layer: Workbench, tmp_path: Path, exported_adapter: Callable[[], Path], lowered_once: Path
) -> None:
    bundle = lora_core.export(
        one_layer.checkpoint,
        adapters={"some": exported_adapter()},
        backend="xnnpack",
        policy="fp32",
        out=tmp_path / "bundle",
        options={"layout": layout, "max_context_len": 32, "max_seq_len": 16},
        cache=lowered_once,
    )
    mark = recorded(bundle)
    assert foundation_mark(bundle.file("foundation.ptd")) == mark
    assert {program_mark(bundle.file(method.program)) for method in bundle.manifest.methods} == {mark}
    program = next(method.program for method in bundle.manifest.methods if method.adapter)
    assert program_adapters(bundle.file(program)) == "some"
    assert lora_core.inspect(bundle.path).problems == ()


@pytest.fixture
def exported_adapter(one_layer: Workbench) -> Callable[[], Path]:
    """Return a function that writes an adapter and returns its directory."""

    def make() -> Path:
        one_layer.adapter("some", seed=5)
        return one_layer.root / "adapters" / "some-1"

    return make
