"""What methods are called, and which names adapters leave to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from lora_core.bundle.bundle import Method
from lora_core.errors import Problem
from lora_core.specs import ReservedNames

Kind = Literal["forward", "prefill"]

BASE_METHODS: frozenset[str] = frozenset(get_args(Kind))
ADAPTERS = "adapters"
ADAPTER_METHODS = "adapter_methods"
FOUNDATION = "lora_foundation"
"""With `--lora inputs`, the constant method that says which base the program is of: its fingerprint."""
KEYS = "_keys"
"""Ends the name of the constant method that says what a method that takes adapters takes behind the base's inputs.

Such methods end as no adapter's name may (`RESERVED`).
"""
METHOD_HELP = (
    "Methods: forward is the base and NAME each adapter; with --multifunction forward (decode, one token) and prefill "
    "are the base, NAME_forward and NAME_prefill each adapter."
)

# Constant methods of every language model (lowering/inputs.py); ExecuTorch keeps them in one namespace with the methods
# that run.
_CONSTANT_METHODS = frozenset(
    (
        *(ADAPTERS, ADAPTER_METHODS, FOUNDATION),
        *("vocab_size", "head_dim", "n_heads_per_cache", "max_context_len", "freqs_cos", "freqs_sin"),
        *("conv_state_shape", "kv_cache_sizes"),
        *(
            f"{prefix}{name}"
            for prefix in ("", "decode_", "prefill_", "forward_")
            for name in (
                "input_len",
                "freqs_cos_input_index",
                "freqs_sin_input_index",
                "mask_specs",
                "kv_cache_specs",
                "conv_state_specs",
                "last_valid_token_pos_index",
            )
        ),
    )
)
# A method is a function of a CoreML package, and these are words of MIL's text form that coremltools 9.0 renames
# (`NameSanitizer` in mil/passes/defs/preprocess.py). `main` is the function of a package that has only one.
_WORDS_OF_MIL = frozenset(
    (
        *("main", "any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string"),
        *("bf16", "fp16", "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        "state",
    )
)

RESERVED = ReservedNames(
    names=frozenset({*BASE_METHODS, "decode", "model"}) | _CONSTANT_METHODS | _WORDS_OF_MIL,  # model.pte
    # `get_max_seq_len`, `use_kv_cache`, `enable_dynamic_shape`: what ExecuTorch's runners read as metadata.
    beginnings=("get_", "use_", "enable_", "append_", "kv_"),
    # Methods of other adapters with --multifunction.
    endings=("_forward", "_prefill", "_decode"),
)


def kinds(multifunction: bool) -> tuple[Kind, ...]:
    """Return the kinds of method that a program has for its base and for each adapter."""
    return ("forward", "prefill") if multifunction else ("forward",)


def method_name(adapter: str | None, kind: Kind, multifunction: bool) -> str:
    """Return the name of the method of `kind` for `adapter` (None: the base)."""
    if adapter is None:
        return kind
    return f"{adapter}_{kind}" if multifunction else adapter


def methods_of(adapters: Iterable[str | None], program: str, multifunction: bool) -> tuple[Method, ...]:
    """Return the methods of `adapters` (None: the base) as a manifest has them; `program` is their file."""
    return tuple(
        Method(name=method_name(name, kind, multifunction), program=program, adapter=name)
        for name in adapters
        for kind in kinds(multifunction)
    )


def collisions(adapters: Sequence[str], multifunction: bool, constants: Iterable[str]) -> list[Problem]:
    """Return a problem for each method of `adapters` that is called like one of the program's constant methods.

    Those are partly the base's own (`BaseModel.metadata`), so no list of reserved names has them all.
    """
    taken = frozenset(constants)
    names = {method_name(name, kind, multifunction): name for name in adapters for kind in kinds(multifunction)}
    return [
        Problem(
            what=f"Method {method!r} of adapter {name!r} is already a method of the program: metadata of the base",
            where=name,
            remedy="Give the adapter another name.",
        )
        for method, name in names.items()
        if method in taken
    ]
