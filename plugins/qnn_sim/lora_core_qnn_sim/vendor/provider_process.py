"""Compile a model for the tensor processor and execute it in emulation: `python provider_process.py DIRECTORY`.

The directory holds `model.onnx`, `request.json` with `options` of the provider and a number of `runs`, and the inputs
of each as `run0.safetensors`, ...; what a run gives is written as `made0.safetensors`, ... The context binary is left
beside `context.onnx`, which says what it holds.

Through ONNX Runtime's public functions alone; nothing of the model may fall back to another processor.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

REFUSED, NOT_LOADED = 3, 4


def main(where: str) -> int:
    """Return the exit code: 0 if everything was compiled and executed."""
    try:
        from safetensors.numpy import load_file, save_file

        # The vendor's wheel brings both; nothing else of this distribution needs either.
        onnxruntime, onnxruntime_qnn = map(importlib.import_module, ("onnxruntime", "onnxruntime_qnn"))
    except (ImportError, OSError) as error:
        sys.stdout.write(f"{error}\n")
        return NOT_LOADED
    directory = Path(where)
    request = json.loads((directory / "request.json").read_text("utf-8"))
    onnxruntime.disable_telemetry_events()
    name = onnxruntime_qnn.get_ep_name()
    try:
        onnxruntime.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    except Exception as error:  # ONNX Runtime has no class that its errors have in common
        sys.stdout.write(f"{error}\n")
        raise SystemExit(NOT_LOADED) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    devices = [each for each in onnxruntime.get_ep_devices() if each.ep_name == name]
    given = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **request["options"]}
    try:
        options.add_provider_for_devices(devices, given)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(directory / "context.onnx"))
        session = onnxruntime.InferenceSession(str(directory / "model.onnx"), options)
        names = [each.name for each in session.get_outputs()]
        for index in range(request["runs"]):
            made = session.run(names, load_file(directory / f"run{index}.safetensors"))
            save_file(dict(zip(names, made, strict=True)), directory / f"made{index}.safetensors")
    except Exception as error:
        sys.stdout.write(f"{error}\n")
        raise SystemExit(REFUSED) from error
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
