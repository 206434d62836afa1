"""Fast lowering changes the time an export takes, and nothing else."""

from __future__ import annotations

import copy
import ctypes
import gc
import hashlib
import io
import logging
import pickle
import threading
import weakref
from collections.abc import Iterator
from importlib import import_module, resources
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lora_core_xnnpack.cache.forms import named_tensors
from lora_core_xnnpack.lowering import fast as module
from lora_core_xnnpack.lowering.fast import FastLowering, fast_lowering, fusion, xnnpack_passes
from lora_core_xnnpack.lowering.fast.patching import Patches
from lora_core_xnnpack.lowering.known import KnownTensors
from ruamel.yaml import YAML

from lora_core.fast_lowering import import_executorch, old_objects_spared

# torch and ExecuTorch warn about their own deprecated calls while they export.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def tiny_llama(*, lora: bool, quantized: bool) -> torch.nn.Module:
    """Build ExecuTorch's own Llama, made lean: one layer, custom attention with a cache, random weights."""
    from executorch.examples.models.llama.llama_transformer import construct_transformer
    from executorch.examples.models.llama.model_args import ModelArgs
    from executorch.examples.models.llama.source_transformation.custom_kv_cache import (
        replace_kv_cache_with_custom_kv_cache,
    )
    from executorch.examples.models.llama.source_transformation.sdpa import replace_sdpa_with_custom_op
    from lora_core_xnnpack.lowering.lean import lean

    torch.manual_seed(0)
    adapter = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} if lora else {}
    shape = {"dim": 64, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 128, "vocab_size": 128}
    cache = {"use_kv_cache": True, "use_sdpa_with_kv_cache_op": True, "max_seq_len": 16, "max_context_len": 32}
    args = ModelArgs(**shape, **cache, **adapter, enable_dynamic_shape=True, use_hf_rope=True)
    model = construct_transformer(args).eval()
    for parameter in model.parameters():
        parameter.data.copy_(torch.rand_like(parameter) - 0.5)
    if quantized:
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_

        config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))
        # One adapted and one plain layer: each quantized layer makes the slow export seconds longer.
        quantize_(model, config, lambda m, fqn: isinstance(m, torch.nn.Linear) and fqn.endswith(("wq.linear", "w2")))
    return lean(replace_kv_cache_with_custom_kv_cache(replace_sdpa_with_custom_op(model)))


def tag(node: torch.fx.Node) -> str:
    return "adapter" if "lora" in node.name else "foundation"


def export(model: torch.nn.Module) -> torch.export.ExportedProgram:
    inputs = (torch.tensor([[2, 3, 4]]), {"input_pos": torch.tensor([0])})
    shapes = ({1: torch.export.Dim("tokens", max=15)}, {"input_pos": {0: 1}})
    with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]), torch.no_grad():
        return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=True).run_decompositions({})


def lower(model: torch.nn.Module, *, external: bool) -> dict[str, Any]:
    """Take the steps of ExecuTorch's own Llama export, with one partitioner; return files and debug maps.

    With `external`, weights go to files of their own, for which that export traces the model twice.
    """
    from executorch.backends.xnnpack._passes.convert_to_linear import ConvertToLinearPass
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.external_constants_pass import delegate_external_constants_pass_unlifted
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    exported = export(model)
    if external:
        unlifted = exported.module()
        delegate_external_constants_pass_unlifted(module=unlifted, gen_tag_fn=tag)
        exported = export(unlifted)
    edge = to_edge_transform_and_lower(
        exported,
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods={"get_max_seq_len": 16},
    )
    edge = edge.transform([ConvertToLinearPass()])
    program = edge.to_executorch(
        ExecutorchBackendConfig(
            extract_delegate_segments=True,
            do_quant_fusion_and_const_prop=True,
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            external_constants=tag if external else False,
        )
    )
    files = {name: bytes(data) for name, data in program._tensor_data.items()}
    return {"program": program.buffer, **files, "debug": (program.debug_handle_map, program.delegate_map)}


# The quantized graph has float layers too, and the graph of the base is part of the adapted one.
@pytest.mark.parametrize(
    "quantized", [pytest.param(False, id="fp32", marks=pytest.mark.deep), pytest.param(True, id="8da4w")]
)
@pytest.mark.parametrize(
    "lora", [pytest.param(False, id="base", marks=pytest.mark.deep), pytest.param(True, id="lora")]
)
def test_fast_lowering_writes_the_same_bytes(*, lora: bool, quantized: bool) -> None:
    slow = lower(tiny_llama(lora=lora, quantized=quantized), external=lora)
    with fast_lowering() as state:
        fast = lower(tiny_llama(lora=lora, quantized=quantized), external=lora)
    assert state.active
    assert set(fast) == set(slow) == {"program", "debug"} | ({"foundation", "adapter"} if lora else set())
    assert [name for name in slow if fast[name] != slow[name]] == []
    model, known = tiny_llama(lora=lora, quantized=quantized), KnownTensors()
    for _, tensor in named_tensors(model):
        known.hold_parts(tensor)
    with fast_lowering(known=known):
        held = lower(model, external=lora)
    assert [name for name in slow if held[name] != slow[name]] == []


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str, Any]]:
    """Record owner, name and former value of everything that gets patched."""
    record: list[tuple[Any, str, Any]] = []
    for method in ("replace", "add"):
        original = getattr(Patches, method)

        def recording(self: Patches, owner: Any, name: str, value: Any, original: Any = original) -> Any:
            if not any(each is owner and known == name for each, known, _ in record):
                record.append((owner, name, vars(owner).get(name)))
            return original(self, owner, name, value)

        monkeypatch.setattr(Patches, method, recording)
    return record


def left_over(record: list[tuple[Any, str, Any]]) -> list[str]:
    return [name for owner, name, before in record if vars(owner).get(name) is not before]


def test_everything_is_put_back_on_exit(replaced: list[tuple[Any, str, Any]]) -> None:
    with fast_lowering(known=KnownTensors()):
        assert len(left_over(replaced)) == len(replaced) >= len(module.PATCHES) - 1
    assert left_over(replaced) == []


def test_everything_is_put_back_after_an_exception(replaced: list[tuple[Any, str, Any]]) -> None:
    with pytest.raises(KeyError, match="on purpose"), fast_lowering():
        raise KeyError("on purpose")
    assert replaced
    assert left_over(replaced) == []


def test_the_collector_gets_its_thresholds_back() -> None:
    import gc

    before = gc.get_threshold()
    with fast_lowering(only=["collector"]):
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before


def test_other_versions_are_left_alone(monkeypatch: pytest.MonkeyPatch, replaced: list[tuple[Any, str, Any]]) -> None:
    monkeypatch.setattr(module, "PROVEN_VERSIONS", {"torch": "2.13.0", "executorch": "9.9.9"})
    with fast_lowering() as state:
        assert replaced == []
    assert not state.active
    assert state.reason == "Fast lowering was proven on torch 2.13.0, executorch 9.9.9; this is executorch 1.5.1."


def test_only_the_named_patches_are_used() -> None:
    with fast_lowering(only=["provenance"]) as state:
        assert state == FastLowering(patches=("provenance",))


def test_an_unknown_patch_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"Unknown patches \['magic'\].*'provenance'"), fast_lowering(only=["magic"]):
        pass


def test_a_second_thread_waits_for_the_first_block_to_end() -> None:
    entered = threading.Event()

    def enter() -> None:
        with fast_lowering():
            entered.set()

    thread = threading.Thread(target=enter)
    with fast_lowering():
        thread.start()
        assert not entered.wait(0.2)
    thread.join()
    assert entered.is_set()


def doubling() -> torch.fx.GraphModule:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.add, (x, x)))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def test_a_deferred_module_runs_shows_and_copies_as_usual() -> None:
    with fast_lowering(only=["recompile"]):
        made = doubling()
        copied, pickled, shown = copy.deepcopy(made), pickle.loads(pickle.dumps(made)), doubling()
        assert "torch.add(x, x)" in shown.code
        assert torch.fx.symbolic_trace(doubling())(torch.ones(1)).item() == 2
    assert [m(torch.ones(1)).item() for m in (made, copied, pickled, shown)] == [2, 2, 2, 2]


def test_a_deferred_module_follows_an_edit_made_after_it_ran() -> None:
    with fast_lowering(only=["recompile"]):
        edited = doubling()
        assert edited(torch.ones(1)).item() == 2
        next(node for node in edited.graph.nodes if node.op == "call_function").target = torch.mul
        edited.recompile()
    assert edited(torch.full((1,), 3.0)).item() == 9
    assert "torch.mul" in str(edited)


def test_shared_provenance_reads_as_copied_provenance_does() -> None:
    from torch.fx.traceback import NodeSource

    def chain(node: torch.fx.Node) -> NodeSource:
        node.meta.clear()
        for name in ("first", "second", "third"):
            node.meta["from_node"] = [NodeSource(node, name)]
        made = NodeSource(node, "last")
        node.meta["from_node"].append(NodeSource(None, "added later"))
        return made

    node = next(iter(doubling().graph.nodes))
    copied = chain(node)
    with fast_lowering(only=["provenance"]):
        shared = chain(node)
        assert copy.deepcopy(shared) == copied
    assert shared.to_dict() == copied.to_dict()


class Gate(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x)


def targets(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_decomposing_again_returns_an_equal_program_of_its_own() -> None:
    with fast_lowering(only=["decompositions"]):
        first = torch.export.export(Gate(), (torch.ones(2),)).run_decompositions({})
        second = first.run_decompositions({})
        assert targets(second) == ["aten.silu.default"]
        next(node for node in second.graph.nodes if node.op == "call_function").target = torch.ops.aten.relu.default
    assert targets(first) == ["aten.silu.default"]
    assert second.module()(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_decomposing_again_still_decomposes_what_the_table_names() -> None:
    with fast_lowering(only=["decompositions"]):
        first = torch.export.export(Gate(), (torch.ones(2),)).run_decompositions({})
        assert "aten.sigmoid.default" in targets(first.run_decompositions())
        assert "aten.sigmoid.default" in targets(first.run_decompositions(torch.export.default_decompositions()))


def test_a_backend_gets_a_program_of_its_own_with_the_same_tensors() -> None:
    from executorch.exir.backend.backend_details import BackendDetails

    layer = torch.nn.Linear(24, 40).eval().requires_grad_(False)
    program = torch.export.export(layer, (torch.zeros(2, 24),), strict=True)
    with fast_lowering(only=["copies"]):
        own = BackendDetails.copy_exported_program_for_preprocess(program, [])
    assert own.graph_module is not program.graph_module
    assert own.state_dict is not program.state_dict
    assert all(own.state_dict[name] is tensor for name, tensor in program.state_dict.items())


def described(value: object) -> list[tuple[object, ...]]:
    tensors = value if isinstance(value, tuple | list) else [value]
    return [(tuple(each.shape), each.stride(), each.dtype) for each in tensors]


def test_remembered_arithmetic_gives_a_graph_of_the_same_sizes() -> None:
    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            halves = x.view(2, -1, x.shape[1])
            return torch.cat([halves, halves * 2], 0).view(2 * x.shape[0], x.shape[1])

    def sizes() -> list[str]:
        shapes = ({0: 2 * torch.export.Dim("half", min=2, max=8)},)
        graph = torch.export.export(Halves(), (torch.ones(4, 4),), dynamic_shapes=shapes).graph
        return [f"{node.target} {getattr(node.meta.get('val'), 'shape', '')}" for node in graph.nodes]

    plain = sizes()
    with fast_lowering(only=["symbols"]):
        assert sizes() == plain


class Gated(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.silu(x) * 2).sum(-1)


def values(module: torch.fx.GraphModule) -> list[torch.Tensor]:
    return [node.meta["val"] for node in module.graph.nodes if node.op == "call_function"]


def replayed(change: dict[Any, tuple[Any, tuple[Any, ...]]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the values of `Gated` before and after a pass that puts operators with more arguments in place of some."""
    from executorch.exir.pass_base import ExportPass

    class Change(ExportPass):
        def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            op, more = change.get(op, (op, ()))
            return super().call_operator(op, (*args[: 1 if more else None], *more), kwargs, meta)

    program = torch.export.export(Gated(), (torch.ones(3, 4),)).run_decompositions({})
    before = values(program.graph_module)
    with fast_lowering(only=["replay"]):
        after = values(Change()(program.graph_module).graph_module)
    return before, after


def test_a_pass_that_changes_nothing_leaves_the_values_of_the_trace() -> None:
    before, after = replayed({})
    assert len(before) == 3
    assert all(new is old for new, old in zip(after, before, strict=True))


def test_behind_a_change_that_changes_no_shape_values_are_those_that_they_were() -> None:
    aten = torch.ops.aten
    before, after = replayed({aten.silu.default: (aten.leaky_relu.default, (0.5,))})
    assert all(new is old for new, old in zip(after, before, strict=True))


def test_behind_a_change_of_shape_or_type_values_are_computed() -> None:
    aten = torch.ops.aten
    before, after = replayed({aten.silu.default: (aten.slice_copy.Tensor, (0, 0, 2))})
    assert [tuple(each.shape) for each in before] == [(3, 4), (3, 4), (3,)]
    assert [tuple(each.shape) for each in after] == [(2, 4), (2, 4), (2,)]


def test_a_size_is_a_number_or_none_whoever_remembers_it() -> None:
    def sizes(bound: int) -> list[tuple[bool, Any]]:
        shapes = ({0: torch.export.Dim("rows", min=2, max=bound)},)
        program = torch.export.export(Gated(), (torch.ones(3, 4),), dynamic_shapes=shapes)
        (rows, _) = next(iter(program.graph.nodes)).meta["val"].shape
        return [(each.node.expr.is_number, each.node.maybe_as_int()) for each in (rows, rows * 0, rows + 1 - rows)]

    plain = sizes(8)
    with fast_lowering(only=["symbols"]):
        assert sizes(8) == plain == [(False, None), (True, 0), (True, 1)]


def test_an_operator_that_comes_while_lowering_is_found() -> None:
    from torch._export.utils import _collect_all_valid_cia_ops

    with fast_lowering(only=["operators"]):
        before = set(_collect_all_valid_cia_ops())
        library = torch.library.Library("lora_core_fast_test", "DEF")
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
        new = set(_collect_all_valid_cia_ops()) - before
    assert [operator.name() for operator in new] == ["lora_core_fast_test::twice"]


def test_operators_are_looked_for_again_only_when_there_are_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._export import utils

    walks: list[object] = []
    one = utils._collect_all_valid_cia_ops_for_namespace
    monkeypatch.setattr(utils, "_collect_all_valid_cia_ops_for_namespace", lambda of: walks.append(of) or one(of))
    with fast_lowering(only=["operators"]):
        first = utils._collect_all_valid_cia_ops()
        walks.clear()
        assert utils._collect_all_valid_cia_ops() is first
        assert walks == []
        library = torch.library.Library("lora_core_again_test", "DEF")
        library.define("half(Tensor x) -> Tensor")
        library.impl("half", lambda x: x / 2, "CompositeImplicitAutograd")
        assert utils._collect_all_valid_cia_ops() > first
    assert walks != []


def test_operators_are_traced_without_the_stacks_that_called_them() -> None:
    def stacks() -> list[bool]:
        program = torch.export.export(Gated(), (torch.ones(3, 4),))
        return ["stack_trace" in node.meta for node in program.graph.nodes if node.op == "call_function"]

    assert all(stacks())
    with fast_lowering(only=["stacks"]):
        assert not any(stacks())


@pytest.mark.parametrize("kind", [int, (int, str), int | str, lambda value: value == 2])
def test_values_of_one_kind_are_mapped_as_torch_does(kind: Any) -> None:
    from torch.utils._pytree import tree_map_only

    tree = {"a": [1, 2.5, True], "b": ("x", None, 2)}
    plain = tree_map_only(kind, repr, tree)
    with fast_lowering(only=["maps"]):
        assert tree_map_only(kind, repr, tree) == plain != tree


def test_patterns_are_traced_once_and_told_apart_by_what_they_are_closed_over() -> None:
    from executorch.exir.passes import _quant_patterns_and_replacements as patterns

    def all_of() -> list[tuple[str, str]]:
        return [(before.code, after.code) for before, after, _ in patterns.get_quant_patterns_and_replacements({})]

    plain = all_of()
    with fast_lowering(only=["patterns"]):
        assert all_of() == plain
        first, again = (patterns.get_quant_patterns_and_replacements({}) for _ in range(2))
    assert [(a is c, b is d) for (a, b, _), (c, d, _) in zip(first, again, strict=True)] == [(True, True)] * len(plain)


def test_a_delegate_answers_as_its_graph_would() -> None:
    module = import_module("torch._higher_order_ops.executorch_call_delegate")
    shapes = ({0: torch.export.Dim("rows", min=2, max=8)},)
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(5, 4),), dynamic_shapes=shapes)
    program = program.run_decompositions({})
    given = next(node.meta["val"] for node in program.graph.nodes if node.name == "input")
    lowered = SimpleNamespace(original_module=program)
    ran = module.call_delegate_cpu(lowered, given)
    with fast_lowering(only=["delegates"]):
        answered = module.call_delegate_cpu(lowered, given)
    assert answered is not ran
    assert described(answered) == described(ran)


def test_a_constant_that_is_delegated_and_read_by_a_kernel_is_held_once() -> None:
    from executorch.backends.xnnpack.operators import node_visitor
    from executorch.exir.emit import _emitter

    values = np.arange(1 << 18, dtype=np.float32)
    array = (ctypes.c_char * values.nbytes).from_buffer(values)
    with fast_lowering(only=["constants"]):
        delegated, emitted = node_visitor.bytes(array), _emitter.bytes(array)
        digests = [module.hashlib.sha256(delegated).digest() for module in (node_visitor, _emitter)]
        values[-1] += 1
        changed = node_visitor.bytes(array)
    assert delegated is emitted
    assert digests == [hashlib.sha256(delegated).digest()] * 2
    assert (changed, delegated) == (values.tobytes(), np.arange(1 << 18, dtype=np.float32).tobytes())


def test_a_held_constant_is_stored_from_where_it_is_and_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from executorch.backends.xnnpack.operators import node_visitor
    from executorch.exir._serialize._cord import Cord
    from executorch.exir._serialize._named_data_store import NamedDataStore
    from executorch.exir.emit import _emitter

    hashed: list[bytes] = []
    real = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda data: [hashed.append(bytes(data)), real(data)][1])
    tensor, known, store = torch.arange(3000.0), KnownTensors(), NamedDataStore()
    known.hold(tensor)
    for _ in range(2):
        with fast_lowering(known=known):
            for each in (node_visitor, _emitter):
                data = each.bytes(array_of(tensor))
                assert each.hashlib.sha256(data).digest() == real(tensor.numpy()).digest()
                store.add_named_data("key", data)
    assert hashed == [tensor.numpy().tobytes()]
    file = io.BytesIO()
    Cord(store.buffers[0]).write_to_file(file)
    assert file.getvalue() == bytes(Cord(store.buffers[0])) == tensor.numpy().tobytes()


def test_what_is_no_held_tensor_as_a_whole_is_copied() -> None:
    from executorch.backends.xnnpack.operators import node_visitor

    tensor, known = torch.arange(3000.0).reshape(30, 100), KnownTensors()
    known.hold(tensor.mT)
    known.hold(tensor[:10])
    with fast_lowering(known=known):
        for part in (tensor, tensor[:10]):
            copied = node_visitor.bytes(array_of(part))
            assert type(copied) is bytes
            assert copied == part.numpy().tobytes()


def array_of(tensor: torch.Tensor) -> Any:
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


@pytest.mark.parametrize("shape", [(5, 8), (3, 7), (4, 6, 1)])
def test_four_bits_are_packed_as_executorch_does(shape: tuple[int, ...]) -> None:
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor

    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
    theirs = NodeVisitor.convert_to_qc4w(values)
    with fast_lowering(only=["nibbles"]):
        assert torch.equal(NodeVisitor.convert_to_qc4w(values), theirs)
        assert torch.equal(NodeVisitor.convert_to_qc4w(values.mT), NodeVisitor.convert_to_qc4w(values.mT.contiguous()))
        with pytest.raises(AssertionError, match=r"out of \[-8, 7\] range"):
            NodeVisitor.convert_to_qc4w(values + 1)


# torch remembers operators on tensors of fixed sizes elsewhere than on those of symbolic ones.
@pytest.mark.parametrize("fixed", [False, True])
def test_nothing_holds_the_weights_after_a_lowering(*, fixed: bool) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    layer = torch.nn.Linear(24, 40).eval().requires_grad_(False)
    weight = weakref.ref(layer.weight)
    module = torch.nn.Sequential(layer, Refused())
    rows = None if fixed else ({0: torch.export.Dim("rows", min=2, max=8)},)
    with fast_lowering():
        program = torch.export.export(module, (torch.zeros(5, 24),), dynamic_shapes=rows).run_decompositions({})
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    del layer, module, program, edge
    gc.collect()
    assert weight() is None


class Refused(torch.nn.Module):
    """What XNNPACK does not take."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erf(x)


def test_checks_forget_the_last_node_that_they_refused() -> None:
    from executorch.exir.backend.utils import WhyNoPartition

    graph = torch.fx.symbolic_trace(Refused()).graph
    check = WhyNoPartition(logging.getLogger("lora_core_fast_test"))
    with fast_lowering(only=["memories"]):
        check(next(iter(graph.nodes)), "it is refused")
    assert check.node is None


def test_the_edge_dialect_is_what_executorchs_own_reader_makes_of_it() -> None:
    import_executorch()
    dialect = import_module("executorch.exir.dialects.edge._ops")
    text = resources.files("executorch.exir.dialects.edge").joinpath("edge.yaml").read_text("utf-8")
    read = YAML(typ="safe").load(text)
    assert repr(dialect._edge_dialect_info) == repr({each["inherits"]: each for each in read})


def test_patterns_of_quantization_are_left_out_only_of_graphs_that_hold_none() -> None:
    from executorch.exir.passes.quant_fusion_pass import get_quant_patterns_and_replacements

    for pattern, _, _ in get_quant_patterns_and_replacements({}):
        graph = getattr(pattern, "graph", None) or torch.fx.symbolic_trace(pattern).graph
        assert {getattr(node.target, "namespace", None) for node in graph.nodes} & fusion.NAMESPACES


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """Have no object frozen, as the tests' processes have those of imported libraries (conftest.py)."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("unfrozen")
def test_old_objects_are_collected_again_after_lowerings() -> None:
    with old_objects_spared():
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()


@pytest.mark.usefixtures("unfrozen")
def test_what_a_process_froze_stays_frozen() -> None:
    gc.freeze()
    with old_objects_spared():
        pass
    assert gc.get_freeze_count()


def test_layers_are_converted_until_they_are_linear() -> None:
    from executorch.backends.xnnpack._passes import ConvertToLinearPass
    from executorch.exir import to_edge

    program = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(3, 4),), strict=False)
    decomposed = to_edge(program).exported_program().graph_module
    assert any(map(xnnpack_passes.becomes_linear, calls(decomposed)))
    converted = ConvertToLinearPass()(decomposed).graph_module
    assert not any(map(xnnpack_passes.becomes_linear, calls(converted)))


def calls(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in module.graph.nodes if node.op == "call_function"]
