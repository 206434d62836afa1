"""ONNX Runtime, imported in one place."""

from __future__ import annotations

import os
from typing import Any


def onnxruntime() -> Any:
    """Import ONNX Runtime without its telemetry, which begins with the import: a thread, and a file for its sessions.

    A library that opens sessions for others has no say in what is sent home. Who sets `ORT_DISABLE_TELEMETRY` has.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as library

    return library
