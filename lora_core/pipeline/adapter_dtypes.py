"""In which type a backend stores adapters, where it can be asked for one."""

from __future__ import annotations

from lora_core.errors import PolicyError, UnsupportedError
from lora_core.quant.policy import Scheme
from lora_core.specs import BackendSpec
from lora_core.suggestions import did_you_mean

DTYPES = ("fp32", "fp16", "int8")


def adapter_scheme(spec: BackendSpec, dtype: str) -> Scheme | None:
    """Return what a policy says of LoRA matrices for backend `spec` to store adapters as `dtype`.

    Raises `PolicyError` for what is no such type, `UnsupportedError` for one that the backend cannot store.
    """
    if dtype in spec.adapter_dtypes:
        return spec.adapter_dtypes[dtype]
    if dtype not in DTYPES:
        raise PolicyError(f"There is no adapter type {dtype!r}.", remedy=did_you_mean(dtype, DTYPES))
    why = spec.refused_adapter_dtypes.get(dtype, "it stores them in one type")
    can = ", ".join(spec.adapter_dtypes)
    raise UnsupportedError(
        f"Backend {spec.name!r} cannot store adapters as {dtype}: {why}.",
        remedy=f"It can store them as {can}." if can else "Leave --adapter-dtype out.",
    )
