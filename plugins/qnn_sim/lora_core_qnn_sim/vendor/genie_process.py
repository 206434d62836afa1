"""Ask Genie whether it takes a dialog configuration: `python genie_process.py LIBRARY CONFIG`, exit code 0 if it does.

The entry point is `GenieDialogConfig_createFromJson(const char* json, handle*)`, which returns 0 for a configuration
that it takes. What it has against another one it prints itself.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

REFUSED, NOT_LOADED = 3, 4


def main(library: str, config: str) -> int:
    """Return the exit code for the configuration in the file `config`."""
    try:
        create = ctypes.CDLL(library).GenieDialogConfig_createFromJson
    except (OSError, AttributeError) as error:  # it is not there, not for this machine, or has no such entry point
        sys.stdout.write(f"{error}\n")
        return NOT_LOADED
    create.restype = ctypes.c_int32
    create.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
    handle = ctypes.c_void_p()
    status = create(Path(config).read_bytes(), ctypes.byref(handle))
    if status != 0:
        sys.stdout.write(f"Genie answers {status}\n")
    return REFUSED if status else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
