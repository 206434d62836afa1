"""Which foundation a data file is, which one a program was made for, and of which adapters it is.

ExecuTorch finds XNNPACK's constants by the hash of their bytes, and all else (an embedding, norms, rotary tables) by
names that any fine-tune of a model has too. So a foundation carries a hash of all that it holds under a name of its
own, its *mark*, and every program that of the foundation that it was made for. Comparing them takes no reading of
weights. The two names differ: ExecuTorch's runtime refuses files that have a name in common.

A program with adapters holds their names too, one a line. They are named data, as the marks are, and no constant method
(which Core ML programs have): a link writes a program's plans as they stand in its template, whatever the adapter is
called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lora_core.errors import BundleError
from lora_core.pte import Buffer
from lora_core_xnnpack.files.data_file import DataBlob, serialize, stored_blobs
from lora_core_xnnpack.files.named_blobs import NamedBlob, mapped
from lora_core_xnnpack.files.program_root import NOT_WHOLE, ProgramRoot, damaged

FOUNDATION_MARK = "lora_core.foundation"
PROGRAM_MARK = "lora_core.made_for_foundation"
PROGRAM_ADAPTERS = "lora_core.adapters"
ADAPTER_MARK = "lora_core.adapter_for_foundation"
MARKS = frozenset({FOUNDATION_MARK, PROGRAM_MARK, PROGRAM_ADAPTERS, ADAPTER_MARK})
INPUTS_OF = "lora_core.inputs_of."
"""With a method's name behind it: the names of what it takes of an adapter, behind the base's inputs, one a line."""
MARK_LENGTH = 64


def mark_of(digests: Mapping[str, str]) -> str:
    """Return the mark of a foundation whose blobs have these SHA-256 hashes by key, its own mark left out."""
    lines = "".join(f"{key} {digest}\n" for key, digest in sorted(digests.items()) if key not in MARKS)
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def program_marks(mark: str | None, adapters: Sequence[str] = ()) -> list[DataBlob]:
    """Return what a program of `adapters` made for the foundation with `mark` carries (None: nothing, as ever before
    there were marks).
    """
    if mark is None:
        return []
    return [marked(PROGRAM_MARK, mark), *([marked(PROGRAM_ADAPTERS, adapters_text(adapters))] if adapters else ())]


def adapters_text(names: Iterable[str]) -> str:
    """Return the names of adapters as a program carries them."""
    return "\n".join(sorted(names))


def marked(name: str, mark: str) -> DataBlob:
    """Return `mark` as the blob `name`."""
    data = mark.encode("utf-8")
    return DataBlob(key=name, data=data, digest=hashlib.sha256(data).hexdigest())


def mark_file(path: Path) -> str:
    """Write the data file at `path`, which has no mark, anew with its mark; return that."""
    data = memoryview(mapped(path))
    blobs = [_hashed(data, blob) for blob in stored_blobs(data, path)]
    mark = mark_of({blob.key: blob.digest for blob in blobs})
    new = path.with_name(f"{path.name}.new")
    with new.open("xb") as file:
        file.writelines(serialize([*blobs, marked(FOUNDATION_MARK, mark)]))
    new.replace(path)
    return mark


def _hashed(data: memoryview, blob: NamedBlob) -> DataBlob:
    content = data[blob.offset : blob.offset + blob.size]
    return DataBlob(key=blob.key, data=content, digest=hashlib.sha256(content).hexdigest(), layout=blob.layout)


def foundation_mark(path: Path) -> str | None:
    """Return the mark of the data file at `path`, None if it has none; raises `BundleError` if it is not whole."""
    data = mapped(path)
    return _mark(data, {blob.key: (blob.offset, blob.size) for blob in stored_blobs(data, path)}, FOUNDATION_MARK)


def program_mark(path: Path) -> str | None:
    """Return the mark of the foundation that the program at `path` was made for, None if it does not say.

    Raises `BundleError` if it is no whole program.
    """
    return _of_program(path, PROGRAM_MARK, _mark)


def program_adapters(path: Path) -> str | None:
    """Return the names of the adapters that the program at `path` carries, None if it does not say.

    Raises `BundleError` if it is no whole program.
    """
    return _of_program(path, PROGRAM_ADAPTERS, _text)


def _of_program(
    path: Path, name: str, read: Callable[[Buffer, Mapping[str, tuple[int, int]], str], str | None]
) -> str | None:
    data = mapped(path)
    try:
        root = ProgramRoot.read(data)
        return read(data, {key: root.spans[index] for key, index in root.named}, name)
    except NOT_WHOLE as error:
        raise damaged(path, error) from error


def require_adapters(names: Iterable[str], program: Path, *, others: bool = False) -> None:
    """Raise `BundleError` if the program at `program` says that it is of other adapters than `names`; with `others` it
    may be of more.
    """
    said, expected = program_adapters(program), adapters_text(names)
    if said not in (None, expected) and not (others and set(names) <= set(said.split("\n"))):
        raise BundleError(
            f"{program.name} is the program of {_listed(said or '')}, and the manifest says that it is that of "
            f"{_listed(expected)}",
            where=str(program),
            remedy="Restore the file that was linked, or add the adapter again.",
        )


def is_mark(key: str) -> bool:
    """Say whether what a file holds under the name `key` says what the file is, and is no tensor."""
    return key in MARKS or key.startswith(INPUTS_OF)


def inputs_text(method: str, keys: Iterable[str]) -> DataBlob:
    """Return what a program carries of a method that takes the parts of slots `keys` as inputs, in order."""
    return marked(f"{INPUTS_OF}{method}", "\n".join(keys))


def program_inputs(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Return what the methods of the program at `path` take of adapters, by method; raises `BundleError` if it is no
    whole program.
    """
    data = mapped(path)
    try:
        root = ProgramRoot.read(data)
        spans = {key.removeprefix(INPUTS_OF): root.spans[at] for key, at in root.named if key.startswith(INPUTS_OF)}
        return {
            method: tuple(bytes(data[offset : offset + size]).decode("utf-8").split("\n"))
            for method, (offset, size) in spans.items()
        }
    except NOT_WHOLE as error:
        raise damaged(path, error) from error


def _listed(text: str) -> str:
    names = text.split("\n") if text else []
    shown = [repr(name[:64]) for name in names[:5]]
    return ", ".join((*shown, *(["others"] if len(names) > len(shown) else ()))) or "the base alone"


def _mark(data: Buffer, places: Mapping[str, tuple[int, int]], name: str) -> str | None:
    found = _text(data, places, name)
    return None if found is None else found[:MARK_LENGTH]


def _text(data: Buffer, places: Mapping[str, tuple[int, int]], name: str) -> str | None:
    if name not in places:
        return None
    offset, size = places[name]
    return bytes(data[offset : offset + size]).decode("ascii", "replace")


class FoundationMark:
    """The mark of a data file, read again only when the file is another than it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[tuple[int, ...], str | None] | None = None

    def read(self) -> str | None:
        """Return the mark, None if the file has none; raises `BundleError` if it is not whole."""
        status = self.path.stat()
        file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self._read is None or self._read[0] != file:
            self._read = (file, foundation_mark(self.path))
        return self._read[1]


def require_mark(recorded: str | None, foundation: FoundationMark, programs: Sequence[Path] = ()) -> None:
    """Raise `BundleError` naming the file that does not belong to the bundle whose foundation has the mark `recorded`.

    With None, a bundle that does not record it, programs are held against the foundation that lies there. Files that
    carry no mark are only refused where one is recorded for the foundation.
    """
    found, file = foundation.read(), foundation.path
    if recorded is not None and found != recorded:
        raise BundleError(
            f"{file.name} is not the foundation that this bundle was made with: {_said(found)}, and the bundle's "
            f"has {recorded}",
            where=str(file),
            remedy="Restore the file that was exported, or export the bundle again.",
        )
    for program in programs:
        made_for = program_mark(program)
        if made_for is not None and found is not None and made_for != found:
            raise BundleError(
                f"{program.name} was made for another foundation: for the one with mark {made_for}, and "
                f"{file.name} has {found}",
                where=str(program),
                remedy="Restore the file that was linked, or add the adapter again.",
            )


def _said(mark: str | None) -> str:
    return "it carries no mark" if mark is None else f"its mark is {mark}"


def says_true(path: Path) -> bool:
    """Say whether the mark of the data file at `path`, if it has one, is that of what it holds; reads all of it."""
    found = foundation_mark(path)
    if found is None:
        return True
    data = memoryview(mapped(path))
    return found == mark_of({blob.key: _hashed(data, blob).digest for blob in stored_blobs(data, path)})
