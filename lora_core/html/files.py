"""Reports of `verify` and `bench` kept as JSON files, and read back for the page of their bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_core.bundle.bundle import Bundle
from lora_core.bundle.durable import storage_errors
from lora_core.errors import InputError, Problem
from lora_core.intake.limits import TABLE
from lora_core.intake.plain_json import read_json

KINDS = ("verify", "bench")
SCHEMA_VERSION = 1


def write_report(kind: str, report: Mapping[str, Any], bundle: Bundle, path: Path) -> None:
    """Write a report of `kind` on `bundle` to `path`, with what identifies the bundle; raises `StorageError`."""
    document = {"report": kind, "schema_version": SCHEMA_VERSION, **_identity(bundle), **report}
    with storage_errors("write", path):
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_reports(paths: Sequence[Path], bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Return the reports in `paths` by kind (`verify`, `bench`); the last one of a kind counts.

    Raises `InputError` with every file that is no report, is newer than this lora-core, or is of another bundle: of
    another foundation or other adapters.
    """
    found: dict[str, dict[str, Any]] = {}
    problems = []
    expected = _identity(bundle)
    for path in paths:
        report = _read(path)
        if report.get("report") not in KINDS:
            what = f"{path.name} is no report of `verify` or `bench`"
            problems.append(Problem(what=what, where=str(path), remedy="Write one with --report FILE."))
        elif report.get("schema_version") != SCHEMA_VERSION:
            what = (
                f"{path.name} has schema version {report.get('schema_version')}, this lora-core knows {SCHEMA_VERSION}"
            )
            problems.append(Problem(what=what, where=str(path), remedy=f"Run `lora-core {report['report']}` again."))
        elif any(report.get(field) != value for field, value in expected.items()):
            what = f"{path.name} is the report of another bundle, or of this one before it was changed"
            problems.append(Problem(what=what, where=str(path), remedy=f"Run `lora-core {report['report']}` again."))
        else:
            found[report["report"]] = report
    if problems:
        raise InputError(problems)
    return found


def _identity(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "foundation": manifest.foundation,
        "adapters": {adapter.name: adapter.digest for adapter in manifest.adapters},
    }


def _read(path: Path) -> dict[str, Any]:
    with storage_errors("read", path):
        try:
            report = read_json(path, TABLE, InputError)
        except InputError:
            return {}
    return report if isinstance(report, dict) else {}
