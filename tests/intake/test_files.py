"""Only regular files of bounded size are read, and what is not is said."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lora_core.errors import InputError
from lora_core.intake.files import open_regular, read_regular


def test_a_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert (
        read_regular(tmp_path / "file", 7, InputError) == read_regular(tmp_path / "link", 7, InputError) == b"content"
    )


def test_a_link_is_refused_where_none_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(InputError, match="This is a link"):
        open_regular(tmp_path / "link", InputError, links=False)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/null"])
def test_devices_are_refused_also_behind_links(tmp_path: Path, device: str) -> None:
    (tmp_path / "link").symlink_to(device)
    for path in (Path(device), tmp_path / "link"):
        with pytest.raises(InputError, match="This is a device"):
            open_regular(path, InputError)


def test_pipes_sockets_and_directories_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, said in (("pipe", "a pipe"), ("socket", "a socket"), (".", "a directory")):
            with pytest.raises(InputError, match=f"This is {said}"):
                open_regular(tmp_path / name, InputError)


def test_a_file_above_the_limit_is_refused_unless_the_limit_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(InputError, match=r"larger than the 10 bytes.*LORA_CORE_LIMIT_FACTOR"):
        read_regular(tmp_path / "file", 10, InputError)
    monkeypatch.setenv("LORA_CORE_LIMIT_FACTOR", "2")
    assert len(read_regular(tmp_path / "file", 10, InputError)) == 11
