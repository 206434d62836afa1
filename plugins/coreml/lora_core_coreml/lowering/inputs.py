"""Example inputs of each method, and the metadata that ExecuTorch's static attention runner reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch  # noqa: TID253 - this module is only imported to lower a model

from lora_core.models.executorch.inputs import static_states
from lora_core_coreml.program.naming import Kind


@attrs.frozen(kw_only=True)
class MethodShape:
    """How many tokens a method takes in one call, and how many are cached before them."""

    kind: Kind
    input_len: int
    cache_len: int


def shapes(*, multifunction: bool, input_len: int, max_context_len: int) -> tuple[MethodShape, ...]:
    """Return the shapes of the methods; decode and prefill have one cache length, so caches are interchangeable."""
    if not multifunction:
        return (MethodShape(kind="forward", input_len=input_len, cache_len=max_context_len - input_len),)
    cache_len = max_context_len - 1
    return (
        MethodShape(kind="forward", input_len=1, cache_len=cache_len),
        MethodShape(kind="prefill", input_len=input_len, cache_len=cache_len),
    )


def example_inputs(module: torch.nn.Module, shape: MethodShape, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return example inputs of ExecuTorch's static attention (`export_static_llm_coreml.py`, release 1.5.1)."""
    from executorch.examples.models.llama.static_attention import StaticAttentionIOManager

    manager = StaticAttentionIOManager(
        module.params,
        input_len=shape.input_len,
        cache_lens=shape.cache_len,
        batch_size=1,
        dtype=dtype,
        style="smart_mask",
        mask_val=float("-inf"),
    )
    options: dict[str, Any] = {
        "masks": manager.masks,
        "freqs_cos_override": module.rope.freqs_cos[: shape.input_len].to(dtype),
        "freqs_sin_override": module.rope.freqs_sin[: shape.input_len].to(dtype),
        **static_states(module, (manager.k_caches, manager.v_caches), dtype),
    }
    if not module.params.generate_full_logits:
        options["last_valid_token_pos"] = torch.tensor([shape.input_len - 1], dtype=torch.long)
    return torch.zeros(1, shape.input_len, dtype=torch.int32), options


def constant_methods(
    module: torch.nn.Module,
    programs: Mapping[Kind, tuple[MethodShape, IndexTable]],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return the constant methods of ExecuTorch's static runner; `programs` has the shape and the table of each of the
    base's methods. `kv_cache_sizes` is ours, where caches differ: heads and their width, a row for each of
    `kv_cache_specs`.

    One method: names without prefix. Two: `decode_` and `prefill_` before what differs. An adapter's methods have the
    signature of the base's, so the same values hold for them.
    """
    params = module.params
    methods: dict[str, Any] = {
        "vocab_size": params.vocab_size,
        "head_dim": params.head_dim,
        "n_heads_per_cache": params.n_kv_heads,
        "max_context_len": params.max_context_len,
        "freqs_cos": module.rope.freqs_cos[: params.max_context_len].to(dtype),
        "freqs_sin": module.rope.freqs_sin[: params.max_context_len].to(dtype),
    }
    sizes = getattr(module, "cache_sizes", {})
    if len({*sizes.values()}) > 1:
        _, table = next(iter(programs.values()))
        methods["kv_cache_sizes"] = torch.tensor([sizes[key] for key in table.caches], dtype=torch.int64)
    if shapes := getattr(module, "conv_states", {}):
        methods["conv_state_shape"] = torch.tensor(next(iter(shapes.values())), dtype=torch.int64)
    for kind, (shape, table) in programs.items():
        prefix = "" if len(programs) == 1 else {"forward": "decode_", "prefill": "prefill_"}[kind]
        length = "forward_input_len" if not prefix else f"{prefix}input_len"
        methods[length] = shape.input_len
        tensors = {name: torch.tensor(value, dtype=torch.int64) for name, value in table.entries.items()}
        methods |= {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    return methods


@attrs.frozen(kw_only=True)
class IndexTable:
    """Where a method's flat inputs and outputs hold caches, masks and rotary tables.

    `inputs` and `outputs` name them by their place in the structures that the method takes and returns; `entries` are
    the numbers by the name of their constant method, and `caches` the key of each row of `kv_cache_specs`.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    entries: Mapping[str, list[Any]]
    caches: tuple[str, ...]


def index_table(exported: torch.export.ExportedProgram) -> IndexTable:
    """Read the table of an exported method of static attention.

    Output positions are read from the program's own output structure. Upstream's script numbers them by sorted cache
    key, which pairs `l10` with the output of `l2` in models of more than ten layers.
    """
    from torch.utils._pytree import tree_unflatten

    inputs = tree_unflatten(range(exported.call_spec.in_spec.num_leaves), exported.call_spec.in_spec)
    outputs = tree_unflatten(range(exported.call_spec.out_spec.num_leaves), exported.call_spec.out_spec)
    options = inputs[0][1]
    keys, values = options["in_cache_state"]
    out_keys, out_values = outputs[1]["out_cache_state"]
    (cache_len,) = options["masks"]
    entries: dict[str, list[Any]] = {
        "freqs_cos_input_index": [options["freqs_cos_override"]],
        "freqs_sin_input_index": [options["freqs_sin_override"]],
        "mask_specs": [[index, length] for length, index in options["masks"].items()],
        "kv_cache_specs": [[keys[c], out_keys[c], values[c], out_values[c], cache_len] for c in keys],
    }
    if "in_conv_state" in options:
        entering, leaving = options["in_conv_state"], outputs[1]["out_conv_state"]
        entries["conv_state_specs"] = [[index, leaving[key]] for key, index in entering.items()]
    if "last_valid_token_pos" in options:
        entries["last_valid_token_pos_index"] = [options["last_valid_token_pos"]]
    return IndexTable(inputs=_labels(inputs), outputs=_labels(outputs), entries=entries, caches=tuple(keys))


def _labels(structure: Any) -> tuple[str, ...]:
    from torch.utils._pytree import keystr, tree_flatten_with_path

    return tuple(keystr(path) for path, _ in tree_flatten_with_path(structure)[0])
