"""Files of records, read when they are asked for and held against the hash that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from lora_core.bundle.entries import AdapterRecord, Branch
from lora_core.bundle.entry_fields import WITH_BRANCHES, EntryLists, check_branches
from lora_core.bundle.fields import Fields, Problems
from lora_core.bundle.paths import records_file
from lora_core.bundle.places import Places
from lora_core.bundle.records import (
    FORMAT,
    NOT_CANONICAL,
    SCHEMA_VERSION,
    ChangedMeanwhileError,
    RecordNode,
    Records,
    grouped,
    key,
)
from lora_core.errors import BundleError
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.intake.plain_json import parse_json

_REMEDY = "The bundle is damaged: export it again, or restore the file."
_CHANGED = "Open the bundle again if another process has changed it; else it is damaged: restore the file."


@attrs.frozen(kw_only=True)
class RecordFiles:
    """The files of records of the bundle at `root`, whose base has `paths` and so many slot `plans`.

    `now` gives the records as they are on disk; files in `pending`, which a change is about to move to their places,
    come before those of the bundle. What was read is kept.
    """

    root: Path
    paths: frozenset[str]
    plans: int
    reopen: Callable[[Path], Records] | None = None
    pending: Path | None = None
    _read: dict[Branch, RecordNode] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    def read(self, branch: Branch) -> RecordNode:
        """Return the node that `branch` names; raises `ChangedMeanwhileError` if the file there is another or gone,
        `BundleError` for one that makes no sense.
        """
        if branch not in self._read:
            file, data = self._content(branch)
            if hashlib.sha256(data).hexdigest() != branch.sha256:
                what = f"The records in {file.name} are not those that the bundle names"
                raise ChangedMeanwhileError(what, where=str(file), remedy=_CHANGED)
            self._read[branch] = self._node(data, branch, str(file))
        return self._read[branch]

    def now(self) -> Records | None:
        """Return the records as they are on disk now."""
        return None if self.reopen is None else self.reopen(self.root)

    def seen(self) -> Iterator[AdapterRecord]:
        """Yield the records that were read."""
        for node in self._read.values():
            yield from node.records

    def _content(self, branch: Branch) -> tuple[Path, bytes]:
        name = records_file(branch.prefix)
        for root in (self.pending, self.root):
            if root is None:
                continue
            if (linked := Places(root).linked(name)) is not None:
                raise BundleError([linked])
            try:
                return root / name, read_regular(root / name, limits.MANIFEST, BundleError, links=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
        what = f"The records in {name!r}, which the bundle names, are missing"
        raise ChangedMeanwhileError(what, where=str(self.root / name), remedy=_CHANGED)

    def _node(self, data: bytes, branch: Branch, where: str) -> RecordNode:
        problems = Problems(where)
        try:
            document = parse_json(data)
        except ValueError as error:
            raise BundleError(f"The records are not JSON: {error}.", where=where, remedy=_REMEDY) from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise BundleError(f"These are no records: 'format' is not {FORMAT!r}.", where=where, remedy=_REMEDY)
        fields = Fields(document, "", problems)
        fields.text("format")
        version = fields.number("schema_version")
        if not WITH_BRANCHES <= version <= SCHEMA_VERSION:
            problems.add("schema_version", f"is {version}; this lora-core reads {WITH_BRANCHES} to {SCHEMA_VERSION}.")
        if fields.text("prefix") != branch.prefix:
            problems.add("prefix", f"must be {branch.prefix!r}.")
        lists = EntryLists.read(fields, version)
        fields.finish()
        if not problems.found:
            node = self._checked(lists, branch, problems)
        if problems.found:
            raise BundleError(problems.found)
        return node

    def _checked(self, lists: EntryLists, branch: Branch, problems: Problems) -> RecordNode:
        lists.check(problems, plans=self.plans, base=self.paths)
        artifacts, records, methods = grouped(lists.artifacts, lists.adapters, lists.methods)
        for field, strays in (("artifacts", artifacts), ("methods", methods)):
            if strays:
                problems.add(field, "has what is no adapter's.")
        for each in records:
            if not key(each.name).startswith(branch.prefix):
                problems.add("adapters", f"has {each.name!r}, which belongs to another file.")
        check_branches(lists.branches, branch.prefix, problems)
        node = RecordNode(
            prefix=branch.prefix,
            records=tuple(sorted(records, key=lambda record: record.name)),
            branches=lists.branches,
        )
        if not node.canonical:
            problems.add("branches", NOT_CANONICAL)
        if node.adapters != branch.adapters:
            problems.add("adapters", f"are {node.adapters}, and {branch.adapters} where they are named.")
        return node
