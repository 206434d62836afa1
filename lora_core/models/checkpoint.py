"""Safetensors checkpoints, single or sharded: headers first, tensors memory-mapped and read once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.errors import ModelError, Problem, StorageError
from lora_core.intake.limits import TABLE
from lora_core.intake.plain_json import read_json
from lora_core.tensors import READABLE, LazyTensor, StoredTensor, open_tensors, row_blocks

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHOWN = 5
_COMPARED = 1 << 24  # bytes that are compared at a time


@attrs.frozen(kw_only=True)
class Checkpoint:
    """The tensors of one checkpoint by name. Only headers have been read."""

    directory: Path
    tensors: Mapping[str, LazyTensor]

    def standing_for(self, name: str, other: str) -> Checkpoint:
        """Return this checkpoint with the tensor stored as `other` under `name`, if that is not stored itself."""
        if name in self.tensors or other not in self.tensors:
            return self
        tensors = {name if stored == other else stored: tensor for stored, tensor in self.tensors.items()}
        return attrs.evolve(self, tensors=tensors)

    def check(self, shapes: Mapping[str, tuple[int, ...]], ignorable: re.Pattern[str]) -> list[Problem]:
        """Compare with the tensors an architecture needs: every missing, unused or misshapen one is reported.

        Tensors whose name matches `ignorable` may be there and are not used.
        """
        problems = []
        missing = [name for name in shapes if name not in self.tensors]
        if missing:
            what = f"The checkpoint lacks {_listed('tensor', missing)}"
            problems.append(Problem(what=what, where=str(self.directory)))
        unused = [name for name in self.tensors if name not in shapes and not ignorable.search(name)]
        if unused:
            problems.append(
                Problem(
                    what=f"The checkpoint holds {_listed('tensor', unused)} that this architecture does not use",
                    where=str(self.directory),
                    remedy="Check that config.json belongs to these weights.",
                )
            )
        for name, stored in self.tensors.items():
            where = f"{stored.path}: {name}"
            if name in shapes and stored.shape != shapes[name]:
                what = f"Tensor {name} has shape {stored.shape}; config.json asks for {shapes[name]}"
                problems.append(Problem(what=what, where=where))
            if name in shapes and stored.dtype not in READABLE:
                what = f"Tensor {name} is stored as {stored.dtype}. Supported: {', '.join(READABLE)}"
                problems.append(Problem(what=what, where=where))
        return problems

    def check_tied(self, head: str, embedding: str) -> None:
        """Raise `ModelError` if the tensor `head` is stored and is not `embedding`, which the configuration ties it to:
        readers disagree on which one counts.
        """
        stored = self.tensors.get(head)
        if stored is not None and not _equal(stored, self.tensors[embedding]):
            raise ModelError(
                f"config.json ties the output head to the embedding, but the checkpoint holds another {head}",
                where=str(stored.path),
                remedy="Set tie_word_embeddings to false in config.json if the stored head counts, "
                "else remove the tensor.",
            )

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the tensors with these names in their files, in float32; those stored so are memory-mapped.

        Raises `StorageError` if a file can no longer be read.
        """
        import torch  # heavy: only loading needs it
        from safetensors import SafetensorError, safe_open

        paths = {stored.name: stored.path for stored in self.tensors.values()}
        files: dict[Path, list[str]] = {}
        for name in dict.fromkeys(names):
            files.setdefault(paths[name], []).append(name)
        tensors: dict[str, torch.Tensor] = {}
        for path, wanted in files.items():
            try:
                with safe_open(path, framework="pt") as stored:
                    tensors.update({name: stored.get_tensor(name).to(torch.float32) for name in wanted})
            except (OSError, SafetensorError) as error:
                raise StorageError(f"Cannot read the checkpoint: {error}", where=str(path)) from error
        return tensors


def open_checkpoint(directory: Path, ignorable: re.Pattern[str]) -> tuple[Checkpoint, list[Problem]]:
    """Read the headers of the checkpoint in `directory`; what cannot be read is returned as problems.

    Tensors whose name matches `ignorable` may be missing where an index lists them.
    """
    if (directory / SINGLE).exists():
        tensors, problems = _read_headers(directory / SINGLE)
    elif (directory / INDEX).exists():
        tensors, problems = _read_shards(directory, ignorable)
    else:
        tensors, problems = {}, [_no_checkpoint(directory)]
    return Checkpoint(directory=directory, tensors=tensors), problems


def _no_checkpoint(directory: Path) -> Problem:
    found = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
    remedy = f"Save the model with save_pretrained, which writes {SINGLE}."
    if found and found[0].endswith(".gguf"):
        what = f"There is no {SINGLE} and no {INDEX}, but {found[0]}"
        return Problem(what=what, where=str(directory), remedy="Give that file itself to read the base from it.")
    said = f"; {found[0]} is of a format that is not read" if found else ""
    return Problem(what=f"There is no {SINGLE} and no {INDEX}{said}", where=str(directory), remedy=remedy)


def _read_headers(path: Path) -> tuple[dict[str, StoredTensor], list[Problem]]:
    try:
        return {tensor.name: tensor for tensor in open_tensors(path, error=ModelError)}, []
    except ModelError as error:
        return {}, list(error.problems)


def _read_shards(directory: Path, ignorable: re.Pattern[str]) -> tuple[dict[str, StoredTensor], list[Problem]]:
    index = directory / INDEX
    try:
        weight_map: dict[str, str] = read_json(index, TABLE, ModelError)["weight_map"]
        shards = sorted({os.fspath(file) for file in weight_map.values()})
    except (ModelError, OSError, KeyError, TypeError, AttributeError) as error:
        return {}, [Problem(what=f"The index has no readable weight_map: {error!r}", where=str(index))]
    tensors: dict[str, StoredTensor] = {}
    problems: list[Problem] = []
    for shard in shards:
        named = [name for name, file in weight_map.items() if file == shard]
        needed = [name for name in named if not ignorable.search(name)]
        if not needed and not (directory / shard).exists():
            continue
        if Path(shard).name != shard or not (directory / shard).exists():
            what = f"Shard {shard} is missing; it holds {_listed('tensor', named)}"
            problems.append(Problem(what=what, where=str(index), remedy="Download the whole checkpoint again."))
            continue
        headers, shard_problems = _read_headers(directory / shard)
        problems += shard_problems
        absent = [name for name in needed if name not in headers]
        if absent and not shard_problems:
            what = f"Shard {shard} lacks {_listed('tensor', absent)} that the index puts there"
            problems.append(Problem(what=what, where=str(index)))
        tensors.update({name: headers[name] for name in named if name in headers})
    return tensors, problems


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    import numpy as np

    pairs = zip(row_blocks(one, _COMPARED), row_blocks(other, _COMPARED), strict=True)
    return one.shape == other.shape and all(np.array_equal(first, second) for first, second in pairs)


def _listed(noun: str, names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{noun} {shown}" if len(names) == 1 else f"{len(names)} {noun}s: {shown}{more}"


def require(problems: list[Problem]) -> None:
    """Raise `ModelError` with all `problems`, if there are any."""
    if problems:
        raise ModelError(problems)
