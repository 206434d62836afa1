"""Pack all: a package for every adapter of a source, what is done left alone, what fails told at the end."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.packages.header import SUFFIX
from lora_core.adapters.packages.seal import SigningKey
from lora_core.bundle.durable import flush_tree, storage_errors, write_whole
from lora_core.bundle.lock import locked
from lora_core.bundle.paths import STATE
from lora_core.bundle.store import open_bundle
from lora_core.errors import Problem, UsageError
from lora_core.events import Emit, FileWritten, StageAdvanced, stage
from lora_core.executor import ExecutorSettings, LostTask
from lora_core.fleet.fleet_report import FailedAdapter, FleetReport
from lora_core.fleet.index import INDEX, FleetIndex, IndexEntry
from lora_core.fleet.origins import FleetAdapter, fleet_adapters, is_url
from lora_core.fleet.tasks import FleetOutcome, FleetTask, FleetWork, SigningKeyText, pack_some
from lora_core.pipeline.given import adapter_formats, format_entries
from lora_core.pipeline.packing_kit import PackingKit

if TYPE_CHECKING:
    from lora_core.hub import PluginHub

BATCH = 16
"""Adapters of a task: few, so that little is done again when a process dies."""
PACKAGES, REPORT = "packages", "report.json"
_STAGE = "Pack adapters"
_LEFT = re.compile(rf"\..+{re.escape(SUFFIX)}\.[0-9a-f]{{8}}")


def pack_all(
    source: str,
    bundle: Path,
    out: Path,
    *,
    sign: Path | None,
    executor: str,
    settings: ExecutorSettings,
    emit: Emit,
    hub: PluginHub,
) -> FleetReport:
    """Pack every adapter below `source`; `lora_core.pack_all` documents arguments and errors."""
    start = time.perf_counter()
    runner = hub.executor(executor)
    runner.check(settings)
    work = _work(bundle, out, sign, shared=runner.shares_files(settings), hub=hub, emit=emit)
    found = fleet_adapters(source, adapter_formats(hub), work.kit.spec.reserved)
    if not runner.shares_files(settings) and not is_url(source):
        what = f"Workers elsewhere do not see the directory {source!r}."
        raise UsageError(what, remedy="Give a URL that they can read, or leave --address out.")
    _require_own(out)
    with storage_errors("write", out):
        (out / PACKAGES).mkdir(parents=True, exist_ok=True)
        with locked(out, emit):
            run = _Run(out=out, index=FleetIndex.read(out / INDEX), work=work.digest, found=found, emit=emit)
            run.tidy()
            with stage(emit, _STAGE):
                run.take(runner.run(pack_some, work, run.tasks, settings))
            report = run.finish(time.perf_counter() - start)
    return report


def _work(path: Path, out: Path, sign: Path | None, *, shared: bool, hub: PluginHub, emit: Emit) -> FleetWork:
    if sign is not None and not shared:
        remedy = "Sign on this machine: leave --address out."
        raise UsageError("A signing key does not leave this machine, and workers are elsewhere.", remedy=remedy)
    key = None if sign is None else SigningKeyText(path=sign.resolve(), public=SigningKey.read(sign).public)
    bundle = open_bundle(path, emit)
    spec = hub.spec_of(bundle)
    kit = PackingKit.of(bundle, spec, hub.backend(spec.name, check_requirements=False))
    return FleetWork(kit=kit, formats=format_entries(hub), out=(out / PACKAGES).resolve() if shared else None, key=key)


def _require_own(out: Path) -> None:
    """Refuse a directory that is in use for anything else: packages are replaced by their names."""
    if not out.is_dir():
        return
    for name, right in ((PACKAGES, stat.S_ISDIR), (INDEX, stat.S_ISREG), (REPORT, stat.S_ISREG)):
        place = out / name
        if os.path.lexists(place) and not right(place.lstat().st_mode):
            what = f"{name!r} is not what a fleet has there, and what is written would go elsewhere."
            raise UsageError(what, where=str(place), remedy="Delete it, or choose another directory.")
    if (out / INDEX).exists():
        return
    # A run that was killed before it had done anything leaves an empty directory and its lock.
    if {each.name for each in out.iterdir()} - {PACKAGES, STATE} or any((out / PACKAGES).glob("[!.]*")):
        what = f"{str(out)!r} is not empty and no fleet's."
        raise UsageError(what, where=str(out), remedy="Choose another directory, or the one of an earlier run.")


@attrs.define(kw_only=True)
class _Run:
    """One run: what is to be done, and what came of it."""

    out: Path
    index: FleetIndex
    work: str
    found: Sequence[FleetAdapter]
    emit: Emit
    tasks: list[FleetTask] = attrs.field(init=False)
    unchanged: int = attrs.field(init=False)
    packed: int = 0
    failed: list[FailedAdapter] = attrs.field(factory=list)
    doubts: dict[str, str] = attrs.field(factory=dict)
    superseded: set[str] = attrs.field(factory=set)

    def tidy(self) -> None:
        """Remove what a killed run left half written, and say what is left to do."""
        self._disown()
        there: dict[str, int] = {}
        for path in (self.out / PACKAGES).iterdir():
            if _LEFT.fullmatch(path.name):
                path.unlink()
            else:
                there[path.name] = path.lstat().st_size
        left: list[tuple[FleetAdapter, str | None]] = []
        for adapter in self.found:
            entry = self.index.entries.get(adapter.place)
            if entry is None or entry.name != adapter.name or there.get(entry.package) != entry.size:
                left.append((adapter, None))
            elif adapter.signature is None or (entry.signature, entry.work) != (adapter.signature, self.work):
                left.append((adapter, entry.key))
        self.unchanged = len(self.found) - len(left)
        self.tasks = [FleetTask(adapters=tuple(left[start : start + BATCH])) for start in range(0, len(left), BATCH)]

    def _disown(self) -> None:
        """Forget adapters that the source lost and whose packages are to be another's, before they are."""
        places, packages = {each.place for each in self.found}, {f"{each.name}{SUFFIX}" for each in self.found}
        entries = self.index.entries
        lost = [place for place in entries if place not in places and entries[place].package in packages]
        for place in lost:
            del entries[place]
        if lost:
            self.index.write()

    def take(self, results: Iterator[tuple[int, Any]]) -> None:
        """Keep what comes, as it comes."""
        done, total = self.unchanged, len(self.found)
        self.emit(StageAdvanced(stage=_STAGE, done=done, total=total))
        if self.tasks:  # what is packed is kept from here on, also if the rest is interrupted
            self.emit(FileWritten(path=self.out))
        for number, result in results:
            task = self.tasks[number]
            outcomes = _lost(task, result) if isinstance(result, LostTask) else result
            self._keep(task, outcomes)
            done += len(task.adapters)
            self.emit(StageAdvanced(stage=_STAGE, done=done, total=total))

    def _keep(self, task: FleetTask, outcomes: Sequence[FleetOutcome]) -> None:
        entries: list[IndexEntry] = []
        for (adapter, _), outcome in zip(task.adapters, outcomes, strict=True):
            if outcome.doubt is not None:
                self.doubts[outcome.place] = outcome.doubt
            if outcome.problems:
                self.failed.append(FailedAdapter(place=outcome.place, name=outcome.name, problems=outcome.problems))
                continue
            if outcome.content is not None and outcome.entry is not None:
                write_whole(self.out / PACKAGES / outcome.entry.package, [outcome.content])
            self.packed += outcome.written
            self.unchanged += not outcome.written
            before = self.index.entries.get(adapter.place)
            known = outcome.entry or before
            assert known is not None, "what was there has an entry"
            if before is not None and before.package != known.package:
                self.superseded.add(before.package)
            entries.append(attrs.evolve(known, signature=adapter.signature, work=self.work))
        self.index.add(entries)

    def finish(self, seconds: float) -> FleetReport:
        """Write index and report; packages that are out of date go: of adapters that failed or are called otherwise."""
        popped = (self.index.entries.pop(each.place, None) for each in self.failed)
        outdated = {entry.package for entry in popped if entry is not None} | self.superseded
        for package in outdated - {entry.package for entry in self.index.entries.values()}:
            (self.out / PACKAGES / package).unlink(missing_ok=True)
        present = {adapter.place for adapter in self.found}
        gone = sorted(entry.package for place, entry in self.index.entries.items() if place not in present)
        report = FleetReport(
            packed=self.packed,
            unchanged=self.unchanged,
            failed=tuple(sorted(self.failed, key=lambda each: each.place)),
            doubts=dict(sorted(self.doubts.items())),
            gone=tuple(gone),
            seconds=seconds,
        )
        if self.tasks:
            flush_tree(self.out / PACKAGES)
            self.index.write()
        self.index.close()
        report.write(self.out / REPORT)
        return report


def _lost(task: FleetTask, lost: LostTask) -> list[FleetOutcome]:
    what = f"Packing it, or one of the {len(task.adapters)} packed together, failed: {lost.why}"
    problem = Problem(
        what=what, remedy="Run again; if it stays, pack each alone to see which it is (`lora-core pack`)."
    )
    return [FleetOutcome(place=each.place, name=each.name, problems=(problem,)) for each, _ in task.adapters]
