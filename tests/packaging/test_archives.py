"""Wheels and sdists hold what they should, and an sdist all that its wheel is made of."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from lora_core import __version__
from tests.packaging.distributions import ALL, ROOT, Distribution

pytestmark = pytest.mark.packaging
each = pytest.mark.parametrize("distribution", ALL, ids=lambda distribution: distribution.name)


def test_every_distribution_has_a_wheel_and_an_sdist(built: Path) -> None:
    endings = ("-py3-none-any.whl", ".tar.gz")
    wanted = {f"{distribution.stem}-{__version__}{ending}" for distribution in ALL for ending in endings}
    assert {path.name for path in built.iterdir()} == wanted


@each
def test_a_wheel_holds_the_whole_package_the_licence_and_nothing_else(distribution: Distribution, built: Path) -> None:
    info = f"{distribution.stem}-{__version__}.dist-info"
    with ZipFile(distribution.wheel(built)) as wheel:
        assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert {name for name in wheel.namelist() if not name.startswith(f"{info}/")} == distribution.files


@each
def test_an_sdist_holds_the_whole_package_and_the_licence(distribution: Distribution, built: Path) -> None:
    top = f"{distribution.stem}-{__version__}"
    with tarfile.open(distribution.sdist(built)) as sdist:
        licence = sdist.extractfile(f"{top}/LICENSE")
        assert licence is not None
        assert licence.read() == (ROOT / "LICENSE").read_bytes()
        assert {f"{top}/{file}" for file in distribution.files} <= set(sdist.getnames())


@each
def test_a_wheel_from_the_sdist_alone_is_that_of_the_repository(
    distribution: Distribution, built: Path, tmp_path: Path
) -> None:
    # `make dist` makes the wheel from the sdist; this one comes from the tree.
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, distribution.directory]
    subprocess.run(command, check=True, capture_output=True)
    assert distribution.wheel(tmp_path).read_bytes() == distribution.wheel(built).read_bytes()
