"""Programs of a bundle opened on ExecuTorch's runtime."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from lora_core.bundle.bundle import Artifact, Bundle, Method
from lora_core.errors import BundleError
from lora_core_xnnpack.artifacts import MARK_DETAIL
from lora_core_xnnpack.files.joining import join_program
from lora_core_xnnpack.files.marks import FoundationMark, require_adapters, require_mark
from lora_core_xnnpack.runtime.locking import nothing_locked
from lora_core_xnnpack.runtime.mapped_pages import drop_pages, return_freed
from lora_core_xnnpack.runtime.open_program import LoadedMethod, OpenProgram, open_program
from lora_core_xnnpack.runtime.packed_cache import PackedCache
from lora_core_xnnpack.runtime.shared_arena import SharedArena

FORWARD = "forward"


class ProgramShelf:
    """The programs that a session has opened, each once; methods of one program share its memory."""

    def __init__(
        self, bundle: Bundle, runtime: ModuleType, packed: PackedCache | None, *, share_arena: bool = True
    ) -> None:
        self._bundle = bundle
        self._runtime = runtime
        self._packed = packed
        self._share_arena = share_arena
        # What a module that takes no tokens keeps from call to call is nobody else's.
        takes_tokens = bundle.manifest.base.vocab_size is not None
        self._arena = SharedArena.where_known() if share_arena and takes_tokens else None
        self._programs: dict[str, OpenProgram] = {}
        self._mark: FoundationMark | None = None

    def load(self, method: Method) -> LoadedMethod:
        """Load `method` with its program; raises `BundleError` if the files are not what the manifest says."""
        foundation = self._foundation()
        with nothing_locked():
            loaded = self._opened(method, foundation)
        drop_pages(foundation)
        return loaded

    def _opened(self, method: Method, foundation: Path) -> LoadedMethod:
        if method.program in self._programs:
            with _blamed(self._bundle.file(method.program), foundation):
                return self._load(method)
        else:
            program = self._bundle.file(method.program)
            recorded = self._bundle.manifest.detail.get(MARK_DETAIL)
            self._mark = self._mark or FoundationMark(foundation)
            require_mark(recorded, self._mark, [program])
            names = [] if method.adapter is None else [method.adapter]
            require_adapters(names, program, others=self._bundle.manifest.options.get("layout") == "multimethod")
            with self._program_file(method) as path, _blamed(path, foundation):
                self._programs[method.program] = open_program(
                    self._runtime, path, foundation, self._packed, self._arena, share_arena=self._share_arena
                )
                return self._load(method)

    def metadata(self, method: Method, name: str) -> int | None:
        """Return what the metadata method `name` of a loaded method's program says, None if there is none."""
        program = self._programs[method.program]
        return program.constant(name) if name in program.names() else None

    def unload(self, method: Method, *, keep: Collection[str]) -> None:
        """Let go of the program of `method` unless it is one of `keep`, programs by their paths."""
        if method.program not in keep:
            self._programs.pop(method.program, None)
        return_freed()

    def close(self) -> None:
        """Let go of all programs."""
        self._programs.clear()

    def _load(self, method: Method) -> LoadedMethod:
        program = self._programs[method.program]
        return program.load(method.name if method.name in program.names() else FORWARD)

    def _foundation(self) -> Path:
        found = [artifact for artifact in self._bundle.manifest.base_artifacts if artifact.role == "foundation"]
        if len(found) != 1:
            raise BundleError(f"The bundle has {len(found)} foundation files, and needs one", where="manifest.json")
        return self._whole(found[0])

    def _program_file(self, method: Method) -> contextlib.AbstractContextManager[Path]:
        record = None if method.adapter is None else self._bundle.record(method.adapter)
        artifacts = (*self._bundle.manifest.base_artifacts, *(record.artifacts if record is not None else ()))
        program = next(artifact for artifact in artifacts if artifact.path == method.program)
        data = [each for each in artifacts if each.role == "adapter-data" and each.adapter == method.adapter]
        path = self._whole(program)
        if method.adapter is None or not data:
            return contextlib.nullcontext(path)
        return _joined_file(path, [self._whole(artifact) for artifact in data])

    def _whole(self, artifact: Artifact) -> Path:
        path = self._bundle.file(artifact)
        size = path.stat().st_size if path.is_file() else None
        if size != artifact.size:
            found = "is missing" if size is None else f"has {size} bytes"
            raise BundleError(
                f"{artifact.path} {found}, and the manifest says {artifact.size} bytes",
                where=str(path),
                remedy="Export the bundle again, or restore the file from a copy.",
            )
        return path


@contextlib.contextmanager
def _joined_file(program: Path, data: Sequence[Path]) -> Iterator[Path]:
    """Give a program file that carries its adapter's data, for as long as it takes to load it.

    It is a file so that the runtime maps it: what a process holds of it can be dropped and is not anonymous memory.
    The mapping outlives the name.
    """
    descriptor, name = tempfile.mkstemp(prefix="lora-core-", suffix=".pte")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(join_program(program, data))
        yield Path(name)
    finally:
        Path(name).unlink()


@contextlib.contextmanager
def _blamed(program: Path, foundation: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise BundleError(
            f"ExecuTorch cannot load {program.name} with {foundation.name}: {error}",
            where=str(program),
            remedy="Check the bundle with `lora-core verify`: a file is damaged, or belongs to another bundle.",
        ) from error
