"""Damage what readers read, over and over: `python -m tests.security.fuzz 1000000` prints what came of it.

Readers take turns, so that a run that is ended (by Ctrl-C, SIGTERM or `--minutes N`) has tried all of them, and tells
what it tried. A turn ends after `TURN` executions or `TURN_SECONDS` of the processor: quick readers are tried more
often.

What a reader does with damaged bytes is to raise our error, or to read them all the same. Anything else is kept in
`tests/security/crashes/TARGET/` and told; whatever lies there is tried by the tests.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import LoraCoreError, PluginError
from tests.security.fuzz_target import Target
from tests.security.fuzz_targets import scratch, targets

CRASHES = Path(__file__).parent / "crashes"
SLOW = 5.0
"""Seconds of the processor after which an execution counts as hung: all seeds are a few kilobytes."""
TURN, TURN_SECONDS = 500, 0.5
_WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_VALUES: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**62, 10**20, 1.5, -0.0, 1e308, "", "x", "../x", "\x1b[2J", "é" * 50),
    *([], {}, [[]], [None], {"": None}, [1] * 100, "9" * 400, "(.+)+!"),
)
_TEXTS = (
    b"[" * 70,
    b'{"a":',
    b"1e999",
    b"NaN",
    b'"\\ud800"',
    b"\xff",
    b"\0",
    b"&a [*a]",
    b"!!python/object:os.x",
    b"-",
    b": ",
    b"\n",
)


@attrs.define(kw_only=True)
class Tally:
    """What became of the executions of one target."""

    executions: int = 0
    read: int = 0
    refused: int = 0
    wrong: list[tuple[str, bytes]] = attrs.field(factory=list)
    slowest: float = 0.0


def attempt(target: Target, data: bytes) -> str | None:
    """Read `data`; return "read", "refused", or None with the defect in the error that is raised."""
    try:
        target.read(data)
    except PluginError:
        raise
    except (LoraCoreError, *target.allowed):
        return "refused"
    return "read"


def run(
    target: Target, executions: int, chance: random.Random, *, seconds: float = math.inf, tally: Tally | None = None
) -> Tally:
    """Try damages of the seeds of `target`: `executions`, or what is done in `seconds` of the processor; count them in
    `tally`.
    """
    tally = Tally() if tally is None else tally
    spent = 0.0
    for _ in range(executions):
        spent += _execute(target, damaged(chance.choice(target.seeds), chance), tally)
        if spent > seconds:
            break
    return tally


def _execute(target: Target, data: bytes, tally: Tally) -> float:
    """Count what becomes of `data`; return the seconds of the processor that it took."""
    start = time.process_time()
    try:
        outcome = attempt(target, data)
        tally.read += outcome == "read"
        tally.refused += outcome == "refused"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        tally.wrong.append((f"{type(error).__name__}: {error}"[:200], data))
    seconds = time.process_time() - start
    if seconds > SLOW:
        tally.wrong.append((f"{seconds:.1f} s", data))
    tally.slowest = max(tally.slowest, seconds)
    tally.executions += 1
    return seconds


def damaged(seed: bytes, chance: random.Random) -> bytes:
    """Return `seed` with a few damages: of its values if it is JSON, else (and sometimes then too) of its bytes."""
    if seed[:1] == b"{" and chance.random() < 0.7:
        return _other_json(seed, chance)
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 2, 4))):
        chance.choice(_DAMAGES)(data, chance)
    return bytes(data)


def _other_json(seed: bytes, chance: random.Random) -> bytes:
    document = json.loads(seed)
    for _ in range(chance.choice((1, 1, 2, 3))):
        holder, key = _place(document, chance)
        if chance.random() < 0.15:
            holder.pop(key)
        elif isinstance(holder, dict) and chance.random() < 0.15:
            holder[f"{key}x"] = holder.pop(key)
        elif isinstance(holder, list) and chance.random() < 0.2:
            holder.extend(copy.deepcopy(holder[:1] * chance.choice((1, 50))))
        else:
            holder[key] = copy.deepcopy(chance.choice(_VALUES))  # another change may put something into it
        if not document:
            break
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _place(document: Any, chance: random.Random) -> tuple[Any, Any]:
    """Return a container in `document` and one of its keys."""
    holder = document
    while True:
        key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.15:
            return holder, key
        holder = inner


def _word(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((1, 2, 4, 8))
    if len(data) >= size:
        value = chance.choice((*_WORDS, len(data), chance.getrandbits(8 * size))) & (1 << 8 * size) - 1
        at = chance.randrange(0, len(data) - size + 1)
        data[at - at % size : at - at % size + size] = value.to_bytes(size, "little")


def _flip(data: bytearray, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _nudge(data: bytearray, chance: random.Random) -> None:
    if len(data) >= 4:
        at = chance.randrange(len(data) - 3)
        (value,) = struct.unpack_from("<I", data, at)
        struct.pack_into("<I", data, at, (value + chance.randint(-16, 16)) & 0xFFFFFFFF)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randint(0, len(data)) :]


def _take_out(data: bytearray, chance: random.Random) -> None:
    start = chance.randint(0, len(data))
    del data[start : start + chance.choice((1, 4, 16, 64))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    start, size = chance.randint(0, len(data)), chance.choice((1, 4, 16, 64))
    data[start:start] = data[start : start + size] * chance.choice((1, 2, 40))


def _insert(data: bytearray, chance: random.Random) -> None:
    at = chance.randint(0, len(data))
    data[at:at] = chance.choice((*_TEXTS, chance.randbytes(8)))


_DAMAGES: Sequence[Callable[[bytearray, random.Random], None]] = (
    *(_word, _word, _flip, _nudge, _cut, _take_out, _repeat, _insert),
)


def campaign(found: Mapping[str, Target], total: int, deadline: float) -> dict[str, Tally]:
    """Give every target a turn after another until `total` damages are tried, it is `deadline` (of `time.monotonic`),
    or somebody interrupts; keep at once what went wrong.
    """
    tallies = {name: Tally() for name in found}
    number = 0
    try:
        while (left := total - sum(each.executions for each in tallies.values())) > 0 and time.monotonic() < deadline:
            number += 1
            share = min(TURN, -(-left // len(found)))
            for name, target in found.items():
                tally = tallies[name]
                known = len(tally.wrong)
                run(target, share, random.Random(f"{name} {number}"), seconds=TURN_SECONDS, tally=tally)
                for told, data in tally.wrong[known:]:
                    keep(name, told, data)
            print(f"turn {number}: {total - left:,} tried before it", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"interrupted in turn {number}", file=sys.stderr)
    return tallies


def keep(name: str, told: str, data: bytes) -> None:
    """Write what went wrong among the crashes that the tests try."""
    place = CRASHES / name / hashlib.sha256(data).hexdigest()[:16]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    print(f"  {name}: {told} ({place})", file=sys.stderr, flush=True)


def table(tallies: Mapping[str, Tally]) -> str:
    """Return what came of a campaign as the table of `docs/reliability.md`."""
    lines = ["| reader | executions | read all the same | refused | wrong | slowest |", "|---|---|---|---|---|---|"]
    for name, tally in tallies.items():
        figures = (f"{each:,}" for each in (tally.executions, tally.read, tally.refused, len(tally.wrong)))
        lines.append(f"| {name} | {' | '.join(figures)} | {tally.slowest:.2f} s |")
    lines.append(f"| together | {sum(tally.executions for tally in tallies.values()):,} | | | | |")
    return "\n".join(lines)


def main(total: int, minutes: float) -> int:
    """Run a campaign and print its table; return how many executions went wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with scratch() as folder:
        tallies = campaign(targets(Path(folder)), total, time.monotonic() + 60 * minutes)
    print(table(tallies))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\n{used.ru_utime + used.ru_stime:.0f} s of the processor, {used.ru_maxrss / 1024:.0f} MiB at most")
    return sum(len(tally.wrong) for tally in tallies.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Damage what readers read, over and over.")
    parser.add_argument("total", type=int)
    parser.add_argument("--minutes", type=float, default=math.inf)
    given = parser.parse_args()
    sys.exit(1 if main(given.total, given.minutes) else 0)
