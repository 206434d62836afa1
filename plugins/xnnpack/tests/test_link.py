"""Linking gives the bytes of a full lowering: ExecuTorch's own exporter and serializers are the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from workbench import TINY_OPTIONS, Workbench

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots import SlotPlan, padded_pair
from lora_core.backend import Artifacts, ExportJob
from lora_core.events import ignore
from lora_core_xnnpack.exporting import load_base
from lora_core_xnnpack.flat_tensor import DataBlob
from lora_core_xnnpack.link import Template, link_adapter
from lora_core_xnnpack.lowering import LORA_TAG, Lowered, lower, tag_of

Exported = Callable[[ExportJob], tuple[Path, Artifacts]]
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
POLICIES = [("fp32", None), ("8da4w", "8,0")]


def full_lowering(job: ExportJob, adapter: Adapter, plan: SlotPlan, *, embed: bool) -> Lowered:
    """Lower the base with the adapter's own tensors, as if there were no templates."""
    from lora_core.models.lora import inject

    base = load_base(job, ignore)
    values = {slot.module: padded_pair(pair, slot) for slot, pair in plan.bind(adapter)}
    module = inject(base.module, plan, base.summary.layers, values)
    return lower(
        {"forward": module}, base, tag=lambda node: None if embed and tag_of(node) == LORA_TAG else tag_of(node)
    )


def template_of(out: Path) -> Template:
    return Template.read(out / "template/0.pte", out / "template/0.json")


@pytest.fixture(scope="session", params=POLICIES, ids=lambda policy: policy[0])
def linked_case(request: pytest.FixtureRequest, bench: Workbench, exported: Exported) -> tuple[ExportJob, Path]:
    """One export with adapters of several shapes, ranks and targets, one with zero modules."""
    policy, embedding = request.param
    adapters = [
        bench.adapter("attention", seed=1),
        bench.adapter("everything", seed=2, rank=2, targets=ALL_LINEAR),
        bench.adapter("zeros", seed=3, rank=3, targets=ALL_LINEAR, zero=("v_proj", "0.mlp.down_proj")),
    ]
    job = bench.job(adapters, policy=policy, embedding=embedding)
    return job, exported(job)[0]


@pytest.mark.parametrize("name", ["attention", "everything", "zeros"])
def test_linked_files_equal_a_full_lowering(linked_case: tuple[ExportJob, Path], name: str) -> None:
    job, out = linked_case
    adapter = next(each for each in job.adapters if each.name == name)
    full = full_lowering(job, adapter, job.plans[0], embed=False)
    assert (out / f"{name}.pte").read_bytes() == full.pte
    assert (out / f"{name}.ptd").read_bytes() == bytes(full.manager._tensor_data[LORA_TAG])


def test_linked_embedded_program_equals_a_full_lowering(linked_case: tuple[ExportJob, Path]) -> None:
    job, out = linked_case
    adapter = job.adapters[-1]
    linked = link_adapter(template_of(out), adapter, job.plans[0], embed=True)
    assert b"".join(linked.program) == full_lowering(job, adapter, job.plans[0], embed=True).pte


def test_foundation_is_the_same_without_one_and_with_several_adapters_in_any_order(
    linked_case: tuple[ExportJob, Path], exported: Exported
) -> None:
    job, out = linked_case
    alone, _ = exported(attrs.evolve(job, adapters=(), plans=()))
    assert (alone / "foundation.ptd").read_bytes() == (out / "foundation.ptd").read_bytes()
    assert (alone / "base.pte").read_bytes() == (out / "base.pte").read_bytes()
    backwards, _ = exported(attrs.evolve(job, adapters=job.adapters[::-1]))
    names = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(backwards) for path in backwards.rglob("*") if path.is_file())
    assert [name for name in names if (out / name).read_bytes() != (backwards / name).read_bytes()] == []


def test_a_plan_for_each_shape_pads_nothing(bench: Workbench, exported: Exported) -> None:
    adapters = [bench.adapter("small", seed=1, rank=2), bench.adapter("large", seed=2, targets=ALL_LINEAR)]
    plans = SlotPlan.per_shape(adapters, bench.handle.summary.layers)
    job = bench.job(adapters, plans=plans)
    out, artifacts = exported(job)
    used = {entry.name: plans[entry.plan] for entry in artifacts.adapters}
    for adapter in adapters:
        assert used[adapter.name].cost(adapter).own == used[adapter.name].cost(adapter).padded
        assert (out / f"{adapter.name}.pte").read_bytes() == full_lowering(
            job, adapter, used[adapter.name], embed=False
        ).pte


def test_an_adapter_tensor_that_the_foundation_holds_is_not_stored_again(bench: Workbench, exported: Exported) -> None:
    out, _ = exported(bench.job([bench.adapter("first", seed=1)]))
    template = template_of(out)
    adapter = bench.adapter("first", seed=1)
    plan = bench.job([adapter]).plans[0]
    linked = link_adapter(template, adapter, plan, embed=False)
    first = next(iter(template.table.tensors))
    slot, pair = next(each for each in plan.bind(adapter) if each[0].module == first.module)
    matrix = padded_pair(pair, slot)[0 if first.matrix == "a" else 1]
    key = DataBlob.under_content_key(matrix.tobytes()).key
    known = attrs.evolve(template, table=attrs.evolve(template.table, foundation_keys=(key,)))
    shorter = link_adapter(known, adapter, plan, embed=False)
    assert linked.data is not None
    assert shorter.data is not None
    assert key.encode() in b"".join(linked.data)
    assert key.encode() not in b"".join(shorter.data)
    assert b"".join(shorter.program) == b"".join(linked.program)


def test_max_seq_len_beyond_the_cache_is_a_problem(bench: Workbench) -> None:
    from lora_core_xnnpack.backend import XnnpackBackend

    job = bench.job([], options=attrs.evolve(TINY_OPTIONS, max_seq_len=64))
    assert [str(problem) for problem in XnnpackBackend().check(job)] == [
        "--max-seq-len 64 is more than --max-context-len 32; one call cannot be longer than the KV cache. "
        "Lower the first or raise the second."
    ]


def test_relocation_tables_differ_only_where_plans_do(bench: Workbench, exported: Exported) -> None:
    adapters = [bench.adapter("one", seed=1), bench.adapter("two", seed=2)]
    tables = [(exported(bench.job([adapter]))[0] / "template/0.json").read_bytes() for adapter in adapters]
    assert all(first == second for first, second in itertools.pairwise(tables))
