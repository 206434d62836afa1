"""Options of the XNNPACK backend inside ExecuTorch's runtime, which its Python interface does not offer.

The C++ functions `executorch::runtime::set_option` and `get_option` are called with ctypes. The structures are those of
`include/executorch/runtime/backend/options.h` in the 1.5.1 wheel: `BackendOption` is `char key[64]` and a
`std::variant<bool, int, std::array<char, 256>>`, and a `Span` of them is passed by value.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

BACKEND = b"XnnpackBackend"
_OPTION_SPAN = "EPKcNS0_4SpanINS0_13BackendOptionEEE"
_SET = f"_ZN10executorch7runtime10set_option{_OPTION_SPAN}"
_GET = f"_ZN10executorch7runtime10get_option{_OPTION_SPAN}"
_BOOL, _INT, _TEXT = 0, 1, 2
_TEXT_SIZE = 256


class OptionError(Exception):
    """The runtime does not have the option, or its interface is another than this module knows."""


class Option(ctypes.Structure):
    """`BackendOption`: `index` says which alternative of the variant `storage` holds."""

    _fields_ = (
        ("key", ctypes.c_char * 64),
        ("storage", ctypes.c_ubyte * 256),
        ("index", ctypes.c_ubyte),
        ("padding", ctypes.c_ubyte * 3),
    )


class OptionSpan(ctypes.Structure):
    """`Span<BackendOption>`."""

    _fields_ = (("data", ctypes.POINTER(Option)), ("size", ctypes.c_size_t))


class BackendOptions:
    """The XNNPACK backend's options, for every program that this process loads from now on."""

    def __init__(self, library: Path) -> None:
        """Open the runtime's `library`, which must be in the process already; raises `OptionError`."""
        try:
            opened = ctypes.CDLL(str(library))
            self._set = _function(opened, _SET)
            self._get = _function(opened, _GET)
        except (OSError, AttributeError) as error:
            raise OptionError(f"{library.name} does not export the options interface ({error})") from error

    def set_flag(self, key: str, value: bool) -> None:
        """Set an option and read it back; raises `OptionError` unless it reads back as `value`."""
        self._call(self._set, _option(key, _BOOL, int(value)))
        if self.flag(key) is not value:
            raise OptionError(f"option {key!r} was set to {value} and reads back as {not value}")

    def flag(self, key: str) -> bool:
        """Return a yes-or-no option; raises `OptionError` if the runtime does not know it."""
        return bool(self._read(key, _BOOL, (0, 1)))

    def number(self, key: str) -> int:
        """Return an integer option; raises `OptionError` if the runtime does not know it."""
        return self._read(key, _INT, (-1, -2))

    def _read(self, key: str, kind: int, poisons: tuple[int, int]) -> int:
        # The runtime leaves an option that it does not know as it was, and reports success. So ask twice, with
        # different values in place: an answer that follows the question is none.
        answers = []
        for poison in poisons:
            option = _option(key, kind, poison)
            self._call(self._get, option)
            if option.index != kind:
                raise OptionError(f"option {key!r} has another type")
            answers.append(_value(option, kind))
        if answers[0] != answers[1]:
            raise OptionError(f"the runtime does not know option {key!r}")
        return answers[0]

    def _call(self, function: Callable[[bytes, OptionSpan], int], option: Option) -> None:
        error = function(BACKEND, OptionSpan(ctypes.pointer(option), 1))
        if error:
            raise OptionError(f"the runtime refused option {option.key.decode()!r} with error {error}")


def text_option(key: str, value: str) -> Option:
    """Return an option with a text, which the runtime limits to 255 bytes; raises `OptionError` for a longer one."""
    encoded = value.encode()
    if len(encoded) >= _TEXT_SIZE:
        raise OptionError(f"the runtime takes at most {_TEXT_SIZE - 1} bytes for option {key!r}: {value}")
    option = Option(key=key.encode(), index=_TEXT)
    ctypes.memmove(option.storage, encoded, len(encoded))
    return option


def _function(library: ctypes.CDLL, symbol: str) -> Callable[[bytes, OptionSpan], int]:
    function = getattr(library, symbol)
    function.argtypes = (ctypes.c_char_p, OptionSpan)
    function.restype = ctypes.c_uint32
    return function  # type: ignore[no-any-return]


def _option(key: str, kind: int, value: int) -> Option:
    option = Option(key=key.encode(), index=kind)
    if kind == _BOOL:
        option.storage[0] = value
    else:
        ctypes.memmove(option.storage, ctypes.byref(ctypes.c_int(value)), ctypes.sizeof(ctypes.c_int))
    return option


def _value(option: Option, kind: int) -> int:
    return option.storage[0] if kind == _BOOL else ctypes.c_int.from_buffer_copy(option.storage).value
