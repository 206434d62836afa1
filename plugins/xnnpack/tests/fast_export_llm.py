"""ExecuTorch's LLM exporter made faster: `python fast_export_llm.py --config FILE`.

What it writes is the same (test_fast_lowering.py).
"""

from __future__ import annotations

import runpy

from lora_core_xnnpack.lowering.fast import fast_lowering

if __name__ == "__main__":
    with fast_lowering():
        runpy.run_module("executorch.extension.llm.export.export_llm", run_name="__main__")
