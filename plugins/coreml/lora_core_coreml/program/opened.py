"""A stored program, opened once for everything that a link reads of it."""

from __future__ import annotations

from pathlib import Path

import attrs

from lora_core.intake.parsing import parsing
from lora_core_coreml.storage import mil, package, pte
from lora_core_coreml.storage.messages import MilModel


@attrs.frozen(kw_only=True)
class OpenedProgram:
    """A `.pte` whose flatbuffer and CoreML models are parsed: `models[i]` is that of `packages[i]`."""

    stored: pte.StoredProgram
    packages: tuple[package.StoredPackage, ...]
    models: tuple[MilModel, ...]

    @classmethod
    def read(cls, path: Path) -> OpenedProgram:
        """Open the program at `path`; raises `BundleError`."""
        stored = pte.read(path)
        packages = tuple(package.stored_packages(stored))
        with parsing(path):
            models = tuple(mil.parse_model(found.read(package.MODEL)) for found in packages)
        return cls(stored=stored, packages=packages, models=models)

    @property
    def path(self) -> Path:
        """The program's file."""
        return self.stored.path
