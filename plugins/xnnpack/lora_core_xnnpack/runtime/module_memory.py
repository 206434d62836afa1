"""Options given to one program as it loads, which ExecuTorch's Python interface does not offer.

`Module::load(const LoadBackendOptionsMap&, Verification)` is public C++ and exported (in the 1.5.1 wheel:
`include/executorch/extension/module/module.h` and `runtime/backend/backend_options_map.h`), but Python's
`ExecuTorchModule` does not pass it on. Its C++ object is found inside the Python one by its virtual table, and nothing
is touched if that does not match.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from lora_core_xnnpack.runtime.runtime_options import BACKEND, Option, OptionError, OptionSpan, text_option

_LOAD = "_ZN10executorch9extension6module6Module4loadERKNS_7runtime21LoadBackendOptionsMapENS3_7Program12VerificationE"
_VTABLE = "_ZTVN10executorch9extension6module6ModuleE"
_VTABLE_HEAD = 2 * ctypes.sizeof(ctypes.c_void_p)  # offset to top and type information stand before the functions
_WORD = ctypes.sizeof(ctypes.c_uint64)
_OBJECT_WORDS = 8
_MINIMAL_VERIFICATION = 0
_MODULE_SIZE = 4096  # more than a `Module` has; only what is readable of it is searched
_LAST_OF_MAP = 6 * _WORD  # libstdc++'s `unordered_map`: 7 words, the last is the bucket of an empty one


class _Entry(ctypes.Structure):
    _fields_ = (("backend", ctypes.c_char * 64), ("options", OptionSpan))


class _OptionsMap(ctypes.Structure):
    _fields_ = (("entries", _Entry * 8), ("size", ctypes.c_size_t))


def load_with_text_option(module: Any, library: Path, key: str, value: str) -> None:
    """Load the program of an `ExecuTorchModule` that has run nothing yet, with a text option for the XNNPACK backend.

    Raises `OptionError` if the runtime's interface is another than the one described above, or it refuses.
    """
    runtime = ctypes.CDLL(str(library))
    try:
        load = getattr(runtime, _LOAD)
        vtable = ctypes.addressof(ctypes.c_void_p.in_dll(runtime, _VTABLE)) + _VTABLE_HEAD
    except (AttributeError, ValueError) as error:
        raise OptionError(f"{library.name} does not export Module::load with options ({error})") from error
    load.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint8)
    load.restype = ctypes.c_uint32
    option: Option = text_option(key, value)
    options = _OptionsMap(size=1)
    options.entries[0].backend = BACKEND
    options.entries[0].options = OptionSpan(ctypes.pointer(option), 1)
    # The runtime copies the options (module.cpp), so they need not outlive the call.
    refused = load(_module_address(module, vtable), ctypes.byref(options), _MINIMAL_VERIFICATION)
    if refused:
        raise OptionError(f"the runtime refused option {key!r} with error {refused}")


def share_arenas(module: Any, library: Path) -> bool:
    """Let all methods of a module that `load_with_text_option` loaded, and that has run none, share one arena.

    That is the constructor's `share_memory_arenas`, which Python does not pass on either. The flag stands between the
    options just given and the map of methods, which is empty: where both are seen, it is set; else nothing is touched
    and False is returned, and each method has an arena of its own.
    """
    vtable = ctypes.addressof(ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), _VTABLE)) + _VTABLE_HEAD
    try:
        address = _module_address(module, vtable)
    except OptionError:
        return False
    options = _installed_options(address)
    if options is None:
        return False
    flag = ctypes.c_uint8.from_address(options + ctypes.sizeof(_OptionsMap))  # its padding is not initialized
    methods = ctypes.addressof(flag) + _WORD
    if flag.value or _words(methods, 4) != [methods + _LAST_OF_MAP, 1, 0, 0]:
        return False
    flag.value = 1
    return True


def _installed_options(module: int) -> int | None:
    """Return the address of the options map inside the `Module` at `module`, None if it is not where it was seen."""
    end = next(end for start, end in _readable_memory() if start <= module < end)
    content = ctypes.string_at(module, min(_MODULE_SIZE, end - module))
    at = content.find(BACKEND + b"\0")
    behind = at + ctypes.sizeof(_OptionsMap) + (2 + 7) * _WORD
    if at < 0 or at % _WORD or behind > len(content):
        return None
    return module + at if _OptionsMap.from_address(module + at).size == 1 else None


def _module_address(module: Any, vtable: int) -> int:
    """Return the address of the C++ `Module`: Python object -> `PyModule` (pybind11's value pointer) -> a member."""
    readable = _readable_memory()
    holder = _words(id(module), _OBJECT_WORDS)[2]  # behind reference count and type
    if _covered(readable, holder, _OBJECT_WORDS * _WORD):
        for member in _words(holder, _OBJECT_WORDS):
            if _covered(readable, member, _WORD) and _words(member, 1)[0] == vtable:
                return member
    raise OptionError("the runtime's Python module is laid out in another way than in ExecuTorch 1.5.1")


def _words(address: int, count: int) -> list[int]:
    return list((ctypes.c_uint64 * count).from_address(address))


def _readable_memory() -> list[tuple[int, int]]:
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError as error:
        raise OptionError("this system does not say which memory is readable") from error
    spans = []
    for line in maps:
        span, mode = line.split()[:2]
        if mode.startswith("r"):
            start, end = span.split("-")
            spans.append((int(start, 16), int(end, 16)))
    return spans


def _covered(spans: list[tuple[int, int]], address: int, size: int) -> bool:
    return any(start <= address and address + size <= end for start, end in spans)
