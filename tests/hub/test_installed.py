"""Entry points are found as the standard library finds them."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path
from zipfile import ZipFile

import pytest

from lora_core.plugin.installed import InstalledPoint, installed_points


def write(
    site: Path, name: str, points: str, *, version: str = "1.0", headers: str = "Name: {}\nVersion: {}\n"
) -> None:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(headers.format(name, version) + "\nVersion: of what follows the headers\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    monkeypatch.setattr(sys, "path", [str(first), str(tmp_path / "missing"), str(second)])
    return first, second


def by_the_standard_library(group: str) -> list[tuple[str, str, str]]:
    found = [(point, point.dist) for point in entry_points(group=group)]
    return sorted((p.name, p.value, f"{dist.name} {dist.version}") for p, dist in found if dist is not None)


def plain(points: list[InstalledPoint]) -> list[tuple[str, str, str]]:
    return sorted((point.name, point.value, point.distribution) for point in points)


@pytest.mark.parametrize("group", ["lora_core", "console_scripts", "pytest11"])
def test_what_is_installed_here_is_found_alike(group: str) -> None:
    assert plain(list(installed_points(group))) == by_the_standard_library(group) != []


def test_sections_comments_and_extras_are_read_alike(sites: tuple[Path, Path]) -> None:
    points = "\n[other]\nx = y\n[lora_core]\n# a = b\n a =  pkg.hooks\nb=pkg:attr [extra]\n\n[last]\nz = y\n"
    write(sites[1], "my-plugin", points, headers="Metadata-Version: 2.1\nname: {}\nVersion: {}\n")
    assert plain(list(installed_points("lora_core"))) == by_the_standard_library("lora_core")
    assert [point.value for point in installed_points("lora_core")] == ["pkg.hooks", "pkg:attr [extra]"]


def test_a_distribution_hides_one_of_its_name_further_on(sites: tuple[Path, Path]) -> None:
    write(sites[0], "my-plugin", "[other]\na = new\n", version="2.0")
    write(sites[1], "My.Plugin", "[lora_core]\na = old\n")
    assert list(installed_points("lora_core")) == []
    assert by_the_standard_library("lora_core") == []


def test_one_in_an_archive_is_found(sites: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write(sites[1], "inside", "[lora_core]\na = pkg.hooks\n")
    archive = sites[0] / "plugins.zip"
    with ZipFile(archive, "w") as made:
        for path in sites[1].rglob("*.dist-info/*"):
            made.write(path, path.relative_to(sites[1]).as_posix())
    monkeypatch.setattr(sys, "path", [str(archive)])
    assert plain(list(installed_points("lora_core"))) == [("a", "pkg.hooks", "inside 1.0")]


def test_what_is_no_text_hides_no_other_plugin(sites: tuple[Path, Path]) -> None:
    write(sites[0], "odd", "")
    (sites[0] / "odd-1.0.dist-info" / "entry_points.txt").write_bytes(b"[lora_core]\n\xff = x")
    write(sites[1], "sound", "[lora_core]\na = pkg.hooks\n")
    assert [point.name for point in installed_points("lora_core")] == ["a"]


def test_a_point_that_names_an_object_gives_that_object() -> None:
    assert InstalledPoint(name="a", value="os:sep", distribution="x 1").load() == "/"
