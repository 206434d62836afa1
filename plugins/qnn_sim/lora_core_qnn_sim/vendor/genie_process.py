"""Ask Genie whether it takes a dialog configuration: `python genie_process.py LIBRARY CONFIG`, exit code 0 if it does.

With `COUNT TOKEN ...` after these the dialog is created, the tokens are its query, and the COUNT tokens that it is
answered with are printed behind `ANSWER`.

Entry points of the library, each returning 0 where all is well: `GenieDialogConfig_createFromJson(json, config*)`,
`GenieDialog_create(config, dialog*)`, `GenieDialog_setMaxNumTokens(dialog, count)`, and
`GenieDialog_tokenQuery(dialog, tokens, how many, 0 for a whole query, callback, data)`, whose callback is given tokens,
how many, a number, and the data. What Genie has against its input it prints itself.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REFUSED, NOT_LOADED = 3, 4
ANSWER = "answer: "
_WORDS = ctypes.POINTER(ctypes.c_uint32)


def main(library: str, config: str, *query: str) -> int:
    """Return the exit code for the configuration in the file `config`, and for the `query` to its dialog."""
    try:
        genie = ctypes.CDLL(library)
        create = genie.GenieDialogConfig_createFromJson
    except (OSError, AttributeError) as error:  # it is not there, not for this machine, or has no such entry point
        sys.stdout.write(f"{error}\n")
        return NOT_LOADED
    create.restype = ctypes.c_int32
    create.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
    handle = ctypes.c_void_p()
    status = create(Path(config).read_bytes(), ctypes.byref(handle))
    if status == 0 and query:
        status = _answer(genie, handle, int(query[0]), [int(token) for token in query[1:]])
    if status != 0:
        sys.stdout.write(f"Genie answers {status}\n")
    return REFUSED if status else 0


def _answer(genie: Any, config: ctypes.c_void_p, count: int, tokens: Sequence[int]) -> int:
    dialog, heard = ctypes.c_void_p(), list[int]()
    sort = ctypes.CFUNCTYPE(None, _WORDS, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)

    def hear(said: Any, amount: int, _code: int, _data: Any) -> None:
        heard.extend(said[index] for index in range(amount))

    genie.GenieDialog_create.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)]
    genie.GenieDialog_setMaxNumTokens.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    genie.GenieDialog_tokenQuery.argtypes = [
        ctypes.c_void_p,
        _WORDS,
        ctypes.c_uint32,
        ctypes.c_int,
        sort,
        ctypes.c_void_p,
    ]
    query = (ctypes.c_uint32 * len(tokens))(*tokens)
    status = int(genie.GenieDialog_create(config, ctypes.byref(dialog)))
    status = status or int(genie.GenieDialog_setMaxNumTokens(dialog, count))
    status = status or int(genie.GenieDialog_tokenQuery(dialog, query, len(tokens), 0, sort(hear), None))
    # Genie may have left a line unfinished.
    sys.stdout.write(f"\n{ANSWER}{json.dumps(heard)}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
