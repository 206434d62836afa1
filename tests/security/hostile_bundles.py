"""Every field of a valid bundle's JSON, changed to what a stranger may write there; and what becomes of it.

`python -m tests.security.hostile_bundles BUNDLE ADAPTER` tries all of them on a copy of a bundle and prints a table.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

import lora_core
from lora_core.errors import ExitCode, LoraCoreError
from lora_core.hub import PluginHub

VALUES: Sequence[Any] = (
    *(None, True, 0, -1, 2**62, 1.5, "", "../../x", "/etc/hostname", "\x1b[31m", [], {}, [[]], "x" * 10_000),
)
_ITEMS = 2
"""Items of a list that are changed; the others are like them."""
_ALLOWED = {ExitCode.USAGE, ExitCode.INPUT, ExitCode.UNSUPPORTED, ExitCode.PLUGIN}
"""A manifest may ask for a backend that is not installed, or lack the adapter that is to be removed."""

Path_ = tuple[str | int, ...]


@attrs.frozen(kw_only=True)
class Trial:
    """One change of one file, one thing done to the bundle, and how it ended."""

    file: str
    field: Path_
    value: Any
    action: str
    outcome: str
    seconds: float
    error: BaseException | None = None

    @property
    def wrong(self) -> bool:
        """Whether something else happened than success or a refusal that blames the bundle."""
        return self.outcome not in ("done", "refused")

    def __str__(self) -> str:
        """Return a line that tells which trial it was."""
        where = ".".join(map(str, self.field))
        return f"{self.file}: {where} = {self.value!r:.40}, {self.action}: {self.outcome} {self.error!r:.160}"


def fields(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Yield the place of every field below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:_ITEMS]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from fields(inner, (*at, key))


def changed(document: Any, at: Path_, value: Any) -> Any:
    """Return a copy of `document` with `value` at the place `at`."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return copy


def changes(bundle: Path) -> Iterator[tuple[str, Path_, Any]]:
    """Yield every change of every JSON file of `bundle` as file, field and value."""
    for file in sorted(bundle.rglob("*.json")):
        for at in fields(json.loads(file.read_bytes())):
            yield from ((file.relative_to(bundle).as_posix(), at, value) for value in VALUES)


def apply(bundle: Path, file: str, at: Path_, value: Any) -> None:
    """Make one change, and the manifest true to it."""
    path = bundle / file
    path.write_text(json.dumps(changed(json.loads(path.read_bytes()), at, value)), encoding="utf-8")
    manifest = bundle / "manifest.json"
    if path == manifest:
        return
    document = json.loads(manifest.read_bytes())
    for artifact in document["artifacts"]:
        if artifact["path"] == file:
            artifact["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            artifact["size"] = path.stat().st_size
    manifest.write_text(json.dumps(document), encoding="utf-8")


def actions(hub: PluginHub, adapter: Path) -> dict[str, Callable[[Path], object]]:
    """Return what is done to a bundle."""
    return {
        "inspect": lambda path: lora_core.inspect(path, hub=hub),
        "add": lambda path: lora_core.add(path, {"newcomer": adapter}, hub=hub),
        "remove": lambda path: lora_core.remove(path, [_first(path)], hub=hub),
        "open": lambda path: lora_core.open(path, hub=hub).close(),
    }


def _first(path: Path) -> str:
    with suppress(KeyError, TypeError, IndexError):
        return str(json.loads((path / "manifest.json").read_bytes())["adapters"][0]["name"])
    return "alice"


def attempt(bundle: Path, change: tuple[str, Path_, Any], name: str, act: Callable[[Path], object]) -> Trial:
    """Do one thing to a changed copy of `bundle`, beside which nothing may change."""
    file, at, value = change
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "bundle"
        shutil.copytree(bundle, copy)
        apply(copy, file, at, value)
        start = time.monotonic()
        outcome, error = _ended(lambda: act(copy))
        beside = {path.name for path in Path(directory).iterdir()} - {"bundle"}
        if beside:
            outcome = f"wrote {sorted(beside)}"
    seconds = time.monotonic() - start
    return Trial(file=file, field=at, value=value, action=name, outcome=outcome, seconds=seconds, error=error)


def _ended(act: Callable[[], object]) -> tuple[str, BaseException | None]:
    try:
        act()
    except LoraCoreError as error:
        foreign = error.exit_code is ExitCode.PLUGIN and not isinstance(error.__cause__, LoraCoreError | None)
        return ("a defect" if foreign or error.exit_code not in _ALLOWED else "refused"), error
    except Exception as error:  # noqa: BLE001 whatever it is, it is what is looked for
        return "a defect", error
    return "done", None


def main(bundle: Path, adapter: Path, only: Sequence[str]) -> int:
    """Try everything and print a table; 1 if anything was wrong."""
    hub = PluginHub()
    count: Counter[tuple[str, str]] = Counter()
    slowest, wrong = 0.0, []
    todo = [(name, act) for name, act in actions(hub, adapter).items() if not only or name in only]
    for change in changes(bundle):
        for name, act in todo:
            trial = attempt(bundle, change, name, act)
            count[name, trial.outcome] += 1
            slowest = max(slowest, trial.seconds)
            if trial.wrong:
                wrong.append(trial)
    for (name, outcome), times in sorted(count.items()):
        sys.stdout.write(f"{name:10} {outcome:10} {times}\n")
    sys.stdout.write(f"slowest: {slowest:.2f} s\n")
    sys.stdout.writelines(f"{trial}\n" for trial in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
