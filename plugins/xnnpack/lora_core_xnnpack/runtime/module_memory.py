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
from lora_core_xnnpack.runtime.shared_arena import PlannedMemory

_LOAD = "_ZN10executorch9extension6module6Module4loadERKNS_7runtime21LoadBackendOptionsMapENS3_7Program12VerificationE"
_LOAD_METHOD = (
    "_ZN10executorch9extension6module6Module11load_methodERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
    "PNS_7runtime21HierarchicalAllocatorEPNSB_11EventTracerEPKNSB_21LoadBackendOptionsMapESt6vectorINSB_6KernelESaISK_EE"
)
_PLANNED_SIZES = (
    "_ZN10executorch9extension6module6Module28get_mem_planned_buffer_sizesERKNSt7__cxx1112basic_stringIcSt11char_traitsIc"
    "ESaIcEEE"
)
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


class _String(ctypes.Structure):
    """libstdc++'s `std::string`, of text that lies elsewhere."""

    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t), ("room", ctypes.c_char * 16))

    @classmethod
    def of(cls, encoded: bytes) -> _String:
        """Return the string of some text, which must outlive it."""
        return cls(encoded, len(encoded))


class _Sizes(ctypes.Structure):
    """`Result<std::vector<size_t>>`."""

    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p), ("ok", ctypes.c_bool))


class NativeModule:
    """The C++ object behind an `ExecuTorchModule` of Python, found once."""

    def __init__(self, module: Any, library: Path) -> None:
        """Find it; raises `OptionError` if the runtime's interface is another than the one described above."""
        self._module = module  # keeps the object alive
        self._runtime = ctypes.CDLL(str(library))
        try:
            self._load = getattr(self._runtime, _LOAD)
            vtable = ctypes.addressof(ctypes.c_void_p.in_dll(self._runtime, _VTABLE)) + _VTABLE_HEAD
        except (AttributeError, ValueError) as error:
            raise OptionError(f"{library.name} does not export Module::load with options ({error})") from error
        readable = _readable_memory()
        self._address = _module_address(module, vtable, readable)
        end = next(end for start, end in readable if start <= self._address < end)
        self._size = min(_MODULE_SIZE, end - self._address)

    def load_with_text_option(self, key: str, value: str) -> None:
        """Load the program, of which nothing has run yet, with a text option for the XNNPACK backend.

        Raises `OptionError` if the runtime refuses.
        """
        self._load.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint8)
        self._load.restype = ctypes.c_uint32
        option: Option = text_option(key, value)
        options = _OptionsMap(size=1)
        options.entries[0].backend = BACKEND
        options.entries[0].options = OptionSpan(ctypes.pointer(option), 1)
        # The runtime copies the options (module.cpp), so they need not outlive the call.
        refused = self._load(self._address, ctypes.byref(options), _MINIMAL_VERIFICATION)
        if refused:
            raise OptionError(f"the runtime refused option {key!r} with error {refused}")

    def planned_sizes(self, name: str) -> tuple[int, ...] | None:
        """Return the bytes of each buffer that a method plans; None where the runtime does not say."""
        ask = getattr(self._runtime, _PLANNED_SIZES, None)
        if ask is None:
            return None
        ask.argtypes, ask.restype = (ctypes.c_void_p,) * 3, None
        encoded, sizes = name.encode(), _Sizes()
        ask(ctypes.byref(sizes), self._address, ctypes.byref(_String.of(encoded)))
        if not sizes.ok:
            return None
        count = ((sizes.end or 0) - (sizes.begin or 0)) // _WORD
        return tuple(_words(sizes.begin, count)) if count else ()  # the vector's few bytes are left to the process

    def load_method(self, name: str, planned: PlannedMemory | None = None) -> bool:
        """Load a method without running it, which Python cannot ask for, into memory of its own or into `planned`.

        Returns False, and has done nothing, where the runtime does not export `Module::load_method` for libstdc++;
        raises `RuntimeError` if the method cannot be loaded.
        """
        load = getattr(self._runtime, _LOAD_METHOD, None)
        if load is None:
            return False
        load.argtypes = (ctypes.c_void_p,) * 6
        load.restype = ctypes.c_uint32
        encoded = name.encode()
        memory = None if planned is None else ctypes.byref(planned)
        kernels = (ctypes.c_void_p * 3)()  # an empty vector, which a function is given by its address
        refused = load(self._address, ctypes.byref(_String.of(encoded)), memory, None, None, ctypes.byref(kernels))
        if refused:
            raise RuntimeError(f"Module::load_method of {name!r} ended with error {refused}")
        return True

    def share_arenas(self) -> bool:
        """Let all methods share one arena, when the program was loaded with an option and no method has been.

        That is the constructor's `share_memory_arenas`, which Python does not pass on either. The flag stands between
        the options just given and the map of methods, which is empty: where both are seen, it is set; else nothing is
        touched and False is returned, and each method has an arena of its own.
        """
        options = self._installed_options()
        if options is None:
            return False
        flag = ctypes.c_uint8.from_address(options + ctypes.sizeof(_OptionsMap))  # its padding is not initialized
        methods = ctypes.addressof(flag) + _WORD
        if flag.value or _words(methods, 4) != [methods + _LAST_OF_MAP, 1, 0, 0]:
            return False
        flag.value = 1
        return True

    def _installed_options(self) -> int | None:
        """Return the address of the options map inside the `Module`, None if it is not where it was seen."""
        content = ctypes.string_at(self._address, self._size)
        at = content.find(BACKEND + b"\0")
        behind = at + ctypes.sizeof(_OptionsMap) + (2 + 7) * _WORD
        if at < 0 or at % _WORD or behind > len(content):
            return None
        return self._address + at if _OptionsMap.from_address(self._address + at).size == 1 else None


def _module_address(module: Any, vtable: int, readable: list[tuple[int, int]]) -> int:
    """Return the address of the C++ `Module`: Python object -> `PyModule` (pybind11's value pointer) -> a member."""
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
