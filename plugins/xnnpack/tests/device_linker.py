"""The library of `native/`, called through its C interface."""

from __future__ import annotations

import ctypes
from pathlib import Path

STATUSES = ("ok", "io", "damaged", "newer", "foreign", "misfit", "unsupported", "memory")


class DeviceError(Exception):
    """What the library refused: one of `STATUSES` and its sentence."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class DeviceLinker:
    """The loaded library, and templates opened with it."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.lora_core_template_foundation.restype = ctypes.c_char_p
        self._library.lora_core_template_foundation.argtypes = [ctypes.c_void_p]
        self._library.lora_core_template_close.argtypes = [ctypes.c_void_p]

    def open(self, program: Path, table: Path) -> ctypes.c_void_p:
        opened = ctypes.c_void_p()
        self._call("lora_core_template_open", _text(program), _text(table), ctypes.byref(opened))
        return opened

    def close(self, opened: ctypes.c_void_p) -> None:
        self._library.lora_core_template_close(opened)

    def foundation(self, opened: ctypes.c_void_p) -> str:
        found: bytes = self._library.lora_core_template_foundation(opened)
        return found.decode()

    def check_foundation(self, opened: ctypes.c_void_p, path: Path) -> None:
        self._call("lora_core_foundation_check", opened, _text(path))

    def link_package(
        self,
        opened: ctypes.c_void_p,
        package: Path,
        program: Path,
        data: Path | None,
        *,
        name: str | None = None,
        strength: float = 1.0,
    ) -> None:
        outputs = (_text(program), _text(data))
        files = (_text(package), _called(name))
        self._call("lora_core_link_package", opened, *files, ctypes.c_double(strength), *outputs)

    def link_peft(
        self,
        opened: ctypes.c_void_p,
        directory: Path,
        program: Path,
        data: Path | None,
        *,
        name: str | None = "some",
        strength: float = 1.0,
    ) -> None:
        files = (
            _text(directory / "adapter_model.safetensors"),
            _text(directory / "adapter_config.json"),
            _called(name),
        )
        outputs = (_text(program), _text(data))
        self._call("lora_core_link_peft", opened, *files, ctypes.c_double(strength), *outputs)

    def add_package(
        self,
        opened: ctypes.c_void_p,
        current: Path,
        package: Path,
        name: str | None,
        program: Path,
        *,
        strength: float = 1,
    ) -> None:
        files = (_text(current), _text(package), _called(name))
        self._call("lora_core_add_package", opened, *files, ctypes.c_double(strength), _text(program))

    def add_peft(
        self, opened: ctypes.c_void_p, current: Path, directory: Path, name: str, program: Path, *, strength: float = 1
    ) -> None:
        files = (directory / "adapter_model.safetensors", directory / "adapter_config.json")
        given = (_text(current), *map(_text, files), name.encode())
        self._call("lora_core_add_peft", opened, *given, ctypes.c_double(strength), _text(program))

    def remove(self, opened: ctypes.c_void_p, current: Path, name: str, program: Path) -> None:
        self._call("lora_core_remove_adapter", opened, _text(current), name.encode(), _text(program))

    def field(self, package: Path, name: str) -> str | None:
        buffer, needed = ctypes.create_string_buffer(1 << 12), ctypes.c_size_t()
        size = ctypes.c_size_t(len(buffer))
        self._call("lora_core_package_field", _text(package), name.encode(), buffer, size, ctypes.byref(needed))
        return buffer.value.decode() if needed.value else None

    def _call(self, name: str, *arguments: object) -> None:
        error = ctypes.create_string_buffer(512)
        status = getattr(self._library, name)(*arguments, error)
        if status:
            raise DeviceError(STATUSES[status], error.value.decode())


def _called(name: str | None) -> bytes | None:
    return None if name is None else name.encode()


def _text(path: Path | None) -> bytes | None:
    return None if path is None else str(path).encode()
