"""Checks of damage: what is built on a damaged file is refused, or shows nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import lora_core
from lora_core.bundle.paths import MANIFEST
from lora_core.errors import BundleError, LoraCoreError
from lora_core.testing.check import Check, links
from lora_core.testing.comparison import file_hashes, hash_differences
from lora_core.testing.materials import ADAPTERS
from lora_core.testing.verdict import Broken
from lora_core.testing.workshop import Workshop


def damage_is_not_passed_on(workshop: Workshop) -> None:
    """Damage each file in turn, then add and remove an adapter.

    Either raises `BundleError` and leaves the bundle as it was, or every other file is what it would be without the
    damage: nothing of it gets into a new file, and no manifest says that it belongs there.
    """
    sound = workshop.copy(workshop.bare())
    bundle = workshop.add(sound, ADAPTERS[:2])
    for name, change in _changes(workshop).items():
        expected = workshop.copy(bundle)
        change(expected)
        hashes = file_hashes(expected)
        for artifact in bundle.manifest.artifacts:
            path = workshop.copy(bundle)
            _damage(path, artifact.path)
            _require_told(f"After {artifact.path!r} was damaged, {name}", change, path, hashes, artifact.path)


def _changes(workshop: Workshop) -> Mapping[str, Callable[[Path], object]]:
    return {
        "add": lambda path: workshop.add(path, ADAPTERS[2:3]),
        "remove": lambda path: lora_core.remove(path, ADAPTERS[:1], emit=workshop.tell, hub=workshop.hub),
    }


def _damage(bundle: Path, name: str) -> None:
    """Change the last byte of a file; the manifest is written after that, as if another change had come between."""
    file, manifest = bundle / name, bundle / MANIFEST
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    manifest.write_bytes(manifest.read_bytes())


def _require_told(
    what: str, change: Callable[[Path], object], path: Path, expected: Mapping[str, str], damaged: str
) -> None:
    before = file_hashes(path)
    try:
        change(path)
    except BundleError:
        if file_hashes(path) != before:
            raise Broken(f"{what} is refused, and changes the bundle") from None
        return
    except LoraCoreError as error:
        raise Broken(f"{what} raises {type(error).__name__}, not BundleError: {error}") from error
    found = {name: digest for name, digest in file_hashes(path).items() if name != damaged}
    wrong = hash_differences({name: digest for name, digest in expected.items() if name != damaged}, found)
    if wrong:
        raise Broken(f"{what} passes the damage on: {', '.join(wrong)}")


CHECKS = (
    Check(
        id="damage-not-passed-on",
        claim="What is built on a damaged file is refused, or shows nothing of the damage.",
        run=damage_is_not_passed_on,
        applies=links,
    ),
)
