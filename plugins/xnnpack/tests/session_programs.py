"""Make small real programs for the session's tests.

A random one-layer Llama of ExecuTorch's own, with custom SDPA and KV cache, whose foundation weighs about 30 MB, is
lowered to XNNPACK with and without LoRA. Two adapters are written in every layout (multi-method: the first):

    base.pte foundation.ptd               the base
    external/NAME.pte external/NAME.ptd   program and adapter data
    embedded/NAME.pte                     the program carries its adapter's data
    multimethod/model.pte                 one program with a method for each

`expected.npz` has the eager model's logits of every position for `TOKENS`.
"""

from __future__ import annotations

from copy import deepcopy
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from executorch.examples.models.llama.llama_transformer import construct_transformer
from executorch.examples.models.llama.model_args import ModelArgs
from executorch.examples.models.llama.source_transformation.custom_kv_cache import (
    replace_kv_cache_with_custom_kv_cache,
)
from executorch.examples.models.llama.source_transformation.sdpa import replace_sdpa_with_custom_op
from executorch.exir import (
    EdgeCompileConfig,
    EdgeProgramManager,
    ExecutorchBackendConfig,
    ExecutorchProgramManager,
    to_edge_transform_and_lower,
)
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.external_constants_pass import delegate_external_constants_pass_unlifted
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer
from executorch.extension.llm.export.partitioner_lib import get_xnnpack_partitioner
from lora_core_xnnpack.lowering.fast import fast_lowering

MAX_CONTEXT = 64
MAX_SEQ = 16
VOCAB = 256
ADAPTERS = ("loud", "quiet")
METADATA = {
    "get_max_seq_len": MAX_SEQ,
    "get_max_context_len": MAX_CONTEXT,
    "get_vocab_size": VOCAB,
    "use_kv_cache": True,
}
TOKENS = tuple(int(token) for token in np.random.default_rng(3).integers(3, VOCAB, size=24))


class LoraLinear(torch.nn.Module):
    """A linear layer with LoRA whose scale is folded into B."""

    def __init__(self, base: torch.nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = base
        self.lora_a = torch.nn.Linear(base.in_features, rank, bias=False)
        self.lora_b = torch.nn.Linear(rank, base.out_features, bias=False)
        with torch.no_grad():
            self.lora_a.weight.copy_(torch.randn(self.lora_a.weight.shape, generator=generator) * 0.05)
            self.lora_b.weight.copy_(torch.randn(self.lora_b.weight.shape, generator=generator) * 0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.lora_b(self.lora_a(x))


def build_model(adapter: str | None) -> torch.nn.Module:
    """Return the model; its base weights do not depend on `adapter`."""
    torch.manual_seed(0)
    args = ModelArgs(
        dim=512,
        n_layers=1,
        n_heads=8,
        n_kv_heads=4,
        hidden_dim=4096,
        vocab_size=VOCAB,
        max_seq_len=MAX_SEQ,
        max_context_len=MAX_CONTEXT,
        use_kv_cache=True,
        use_sdpa_with_kv_cache_op=True,
        enable_dynamic_shape=True,
    )
    model = construct_transformer(args).eval()
    if adapter is not None:
        generator = torch.Generator().manual_seed(1 + ADAPTERS.index(adapter))
        for layer in model.layers:
            layer.attention.wq = LoraLinear(layer.attention.wq, 8, generator)
            layer.attention.wv = LoraLinear(layer.attention.wv, 8, generator)
    model = replace_sdpa_with_custom_op(replace_kv_cache_with_custom_kv_cache(model))
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model


def export(model: torch.nn.Module, adapter: str | None) -> torch.export.ExportedProgram:
    """Export with a dynamic number of tokens, every weight tagged with the file it goes to."""
    example = (torch.zeros(1, 3, dtype=torch.long), {"input_pos": torch.tensor([0], dtype=torch.long)})
    shapes = ({1: torch.export.Dim("tokens", max=MAX_SEQ - 1)}, {"input_pos": {0: 1}})
    with torch.no_grad():
        module = (
            torch.export.export(model, example, dynamic_shapes=shapes, strict=False).run_decompositions({}).module()
        )
        delegate_external_constants_pass_unlifted(module=module, gen_tag_fn=tagger(adapter))
        return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)


def tagger(adapter: str | None):
    return lambda node: adapter if "lora" in node.name else "foundation"


def lower() -> EdgeProgramManager:
    """Lower two methods: `forward`, the base, and the first adapter's."""
    programs = {"forward": export(build_model(None), None), ADAPTERS[0]: export(build_model(ADAPTERS[0]), ADAPTERS[0])}
    return to_edge_transform_and_lower(
        programs,
        partitioner={name: [get_xnnpack_partitioner(dynamic_quant_only_partitioner=False)] for name in programs},
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods=METADATA,
    )


def program(edge: EdgeProgramManager, methods: dict[str, str]) -> ExecutorchProgramManager:
    """Return a program with the lowered methods `methods` (its name in the program: its name in `edge`)."""
    chosen = EdgeProgramManager(
        {name: deepcopy(edge.exported_program(method)) for name, method in methods.items()},
        constant_methods=METADATA,
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    chosen._named_data_store = edge._named_data_store
    config = ExecutorchBackendConfig(
        extract_delegate_segments=True,
        memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        external_constants=tagger(ADAPTERS[0]),
    )
    return chosen.to_executorch(config)


def another_adapter(program: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Return `program` and `data` of the first adapter as they are for the second: other bytes, and so other keys."""
    pairs = zip(lora_tensors(ADAPTERS[0]), lora_tensors(ADAPTERS[1]), strict=True)
    for old, new in pairs:
        assert data.count(old) == 1
        data = data.replace(old, new)
        for old_key, new_key in [(sha256(old).hexdigest().encode(), sha256(new).hexdigest().encode())]:
            assert old_key in program
            assert old_key in data
            program, data = program.replace(old_key, new_key), data.replace(old_key, new_key)
    return program, data


def lora_tensors(adapter: str) -> list[bytes]:
    return [value.numpy().tobytes() for name, value in build_model(adapter).state_dict().items() if "lora" in name]


def join_as_executorch_does(program: bytes, data: bytes) -> bytes:
    payload = FlatTensorSerializer().deserialize(data)
    file = deserialize_pte_binary(program)
    file.named_data = NamedDataStoreOutput(
        buffers=list(payload.buffers), pte_data=dict(payload.named_data), external_data={}
    )
    return bytes(serialize_pte_binary(file, extract_delegate_segments=True))


def eager_logits(adapter: str | None) -> np.ndarray:
    model = build_model(adapter)
    rows = []
    with torch.no_grad():
        for position, token in enumerate(TOKENS):
            rows.append(model(torch.tensor([[token]]), {"input_pos": torch.tensor([position])}).reshape(-1).numpy())
    return np.stack(rows)


def main(out: Path) -> None:
    for layout in ("external", "embedded", "multimethod"):
        (out / layout).mkdir(parents=True)
    with fast_lowering():  # the same bytes: test_fast_lowering.py
        write_programs(out)
    logits = {name: eager_logits(name) for name in ADAPTERS}
    np.savez(out / "expected.npz", tokens=np.array(TOKENS), base=eager_logits(None), **logits)


def write_programs(out: Path) -> None:
    edge = lower()
    base = program(edge, {"forward": "forward"})
    (out / "base.pte").write_bytes(base.buffer)
    (out / "foundation.ptd").write_bytes(bytes(base._tensor_data["foundation"]))
    first = program(edge, {"forward": ADAPTERS[0]})
    files = {ADAPTERS[0]: (first.buffer, bytes(first._tensor_data[ADAPTERS[0]]))}
    files[ADAPTERS[1]] = another_adapter(*files[ADAPTERS[0]])
    for name, (pte, ptd) in files.items():
        (out / "external" / f"{name}.pte").write_bytes(pte)
        (out / "external" / f"{name}.ptd").write_bytes(ptd)
        (out / "embedded" / f"{name}.pte").write_bytes(join_as_executorch_does(pte, ptd))
    both = program(edge, {"forward": "forward", ADAPTERS[0]: ADAPTERS[0]})
    (out / "multimethod" / "model.pte").write_bytes(
        join_as_executorch_does(both.buffer, bytes(both._tensor_data[ADAPTERS[0]]))
    )
