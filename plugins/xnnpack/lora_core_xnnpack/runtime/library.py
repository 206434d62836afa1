"""Load ExecuTorch's runtime into this process, with every kernel that our programs use."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from lora_core.errors import UnsupportedError
from lora_core_xnnpack.runtime.openmp import one_openmp_thread

_KERNEL_LIBRARIES = {
    "extension/llm/custom_ops": "custom_ops_aot_lib",  # llama::custom_sdpa, llama::update_cache
    "kernels/quantized": "quantized_ops_aot_lib",  # quantized_decomposed::embedding_byte, ..._4bit
}


def load_runtime() -> ModuleType:
    """Return ExecuTorch's extension module after registering the kernels; raises `UnsupportedError`.

    This is `executorch.extension.pybindings._C` itself: its public face `portable_lib` imports the whole exporter for
    the sake of one warning, which costs 3 s and 130 MB (ExecuTorch 1.5.1).
    """
    try:
        with one_openmp_thread():
            import torch  # its libraries have to be in the process before ExecuTorch's

            torch.get_num_threads()  # which makes it settle on a number
        from executorch.extension.pybindings import _C
    except (ImportError, OSError) as error:
        raise UnsupportedError(
            f"ExecuTorch's runtime cannot be loaded: {error}", remedy="pip install executorch==1.5.1 torch==2.13.0"
        ) from error
    for folder, name in _KERNEL_LIBRARIES.items():
        torch.ops.load_library(str(_library(folder, name)))
    runtime: ModuleType = _C
    return runtime


def runtime_library() -> Path:
    """Return the path of the shared library that holds the runtime's own C++ interface."""
    return _library("lib", "executorch")


def _library(folder: str, name: str) -> Path:
    import executorch

    for root in executorch.__path__:
        for suffix in ("so", "dylib", "dll"):
            for prefix in ("lib", ""):
                path = Path(root, folder, f"{prefix}{name}.{suffix}")
                if path.is_file():
                    return path
    raise UnsupportedError(
        f"ExecuTorch is installed without its library {name!r}",
        where=f"executorch/{folder}",
        remedy="pip install --force-reinstall executorch==1.5.1",
    )
