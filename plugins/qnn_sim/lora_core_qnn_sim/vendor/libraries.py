"""Where the vendor's libraries are: in the wheel `onnxruntime-qnn`, if it is installed."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import attrs

DISTRIBUTION = "onnxruntime-qnn"
NOT_INSTALLED = f"{DISTRIBUTION} is not installed"
_PACKAGE = "onnxruntime_qnn"


@attrs.frozen(kw_only=True)
class VendorLibraries:
    """The folder of the libraries, and the version of the wheel that brought them."""

    directory: Path
    version: str

    @classmethod
    def find(cls) -> VendorLibraries | None:
        """Return those that are installed, without importing them; None if there are none."""
        spec = importlib.util.find_spec(_PACKAGE)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            return cls(directory=Path(place), version=_version())
        return None

    @property
    def name(self) -> str:
        """The wheel with its version."""
        return f"{DISTRIBUTION} {self.version}"

    @property
    def genie(self) -> Path:
        """The library that holds dialogs."""
        return self.directory / "libGenie.so"


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # a folder that was copied, or a wheel of another name
        return "of unknown version"
