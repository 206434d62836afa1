"""Ask Genie whether it takes a dialog configuration: `python genie_process.py LIBRARY CONFIG`, exit code 0 if it does.

With a `QUERY` after these (JSON: `tokens`, `count`, `adapter`, `strengths`) the dialog is created and the adapter
applied, and for each of the strengths, by their names, the tokens are a query of their own. The tokens that each is
answered with, at most as many as `count`, are printed behind `ANSWER`.

Entry points of the library, each returning 0 where all is well: `GenieDialogConfig_createFromJson(json, config*)`,
`GenieDialog_create(config, dialog*)`, `GenieDialog_setMaxNumTokens(dialog, count)`,
`GenieDialog_applyLora(dialog, engine, adapter)`, `GenieDialog_setLoraStrength(dialog, engine, strength, value)`,
`GenieDialog_reset(dialog)`, and
`GenieDialog_tokenQuery(dialog, tokens, how many, 0 for a whole query, callback, data)`, whose callback is given tokens,
how many, a number, and the data. What Genie has against its input it prints itself.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REFUSED, NOT_LOADED = 3, 4
ANSWER = "answer: "
ENGINE = b"primary"
_HANDLE, _WORDS = ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)
_HEAR = ctypes.CFUNCTYPE(None, _WORDS, ctypes.c_uint32, ctypes.c_int, _HANDLE)
_TAKES = {
    "GenieDialogConfig_createFromJson": [ctypes.c_char_p, ctypes.POINTER(_HANDLE)],
    "GenieDialog_create": [_HANDLE, ctypes.POINTER(_HANDLE)],
    "GenieDialog_setMaxNumTokens": [_HANDLE, ctypes.c_uint32],
    "GenieDialog_applyLora": [_HANDLE, ctypes.c_char_p, ctypes.c_char_p],
    "GenieDialog_setLoraStrength": [_HANDLE, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_float],
    "GenieDialog_reset": [_HANDLE],
    "GenieDialog_tokenQuery": [_HANDLE, _WORDS, ctypes.c_uint32, ctypes.c_int, _HEAR, _HANDLE],
}


class RefusedError(Exception):
    """Genie answered something else than 0."""


def main(library: str, config: str, query: str = "") -> int:
    """Return the exit code for the configuration in the file `config`, and for the `query` to its dialog."""
    try:
        loaded = ctypes.CDLL(library)
        entries = {name: getattr(loaded, name) for name in _TAKES}
    except (OSError, AttributeError) as error:  # it is not there, not for this machine, or has no such entry point
        sys.stdout.write(f"{error}\n")
        return NOT_LOADED
    for name, takes in _TAKES.items():
        entries[name].restype, entries[name].argtypes = ctypes.c_int32, takes

    def call(name: str, *arguments: Any) -> None:
        if status := entries[name](*arguments):
            raise RefusedError(f"Genie answers {status} to {name}")

    handle = _HANDLE()
    try:
        call("GenieDialogConfig_createFromJson", Path(config).read_bytes(), ctypes.byref(handle))
        if query:
            answers = _answers(call, handle, json.loads(query))
            # Genie may have left a line unfinished.
            sys.stdout.write(f"\n{ANSWER}{json.dumps(answers)}\n")
    except RefusedError as error:
        sys.stdout.write(f"{error}\n")
        return REFUSED
    return 0


def _answers(call: Callable[..., None], config: Any, query: Mapping[str, Any]) -> list[list[int]]:
    dialog, answers = _HANDLE(), []
    call("GenieDialog_create", config, ctypes.byref(dialog))
    call("GenieDialog_setMaxNumTokens", dialog, query["count"])
    call("GenieDialog_applyLora", dialog, ENGINE, query["adapter"].encode())
    tokens = (ctypes.c_uint32 * len(query["tokens"]))(*query["tokens"])
    for strengths in query["strengths"]:
        for name, value in strengths.items():
            call("GenieDialog_setLoraStrength", dialog, ENGINE, name.encode(), value)
        heard: list[int] = []

        def hear(said: Any, amount: int, _code: int, _data: Any, into: list[int] = heard) -> None:
            into.extend(said[index] for index in range(amount))

        call("GenieDialog_reset", dialog)
        call("GenieDialog_tokenQuery", dialog, tokens, len(tokens), 0, _HEAR(hear), None)
        answers.append(heard)
    return answers


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
